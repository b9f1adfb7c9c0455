"""Errors: which classes are confused, and which mistakes are made with confidence."""

import numpy as np
import seaborn

from cifar_keras import metrics
from cifar_keras.explain.base import PALETTE, Section, checked, gallery, named
from cifar_keras.plotting import FEW, GREY, NAMED, confusion_on, drawn, row_shares, shares, titled, without_frame

MISTAKES = 20  # pictures in the gallery
MOST_PAIRS = 10  # of classes, the most confused ones


@drawn
def errors(labels, probabilities, class_names, *, images=None, superclass=None, superclass_names=()) -> Section:
    """Confusions, metrics per class, ROC, and the most confident mistakes.

    Numbers that a class without images lacks are None.

    Args:
        labels: int `(n,)`.
        probabilities: float `(n, classes)`, rows summing to 1.
        class_names: one per class.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255], anything indexable; None leaves out the gallery.
        superclass: int `(classes,)`, each class's superclass, or None; -1 for a class without images.
        superclass_names: one per superclass.
    Raises: ValueError where labels, probabilities and names do not match.
    """
    labels, probabilities = checked(labels, probabilities, class_names)
    superclass = None if superclass is None else np.asarray(superclass)
    matrix = metrics.confusion(labels, probabilities)
    by_class = _by_class(labels, probabilities, class_names)
    if superclass is not None:
        known = [superclass_names[s] if s >= 0 else None for s in superclass]
        by_class = [{**row, "superclass": name} for row, name in zip(by_class, known, strict=True)]
    pairs, wrong = confused_pairs(matrix, class_names), most_confident_mistakes(labels, probabilities)
    ranked = sorted((row for row in by_class if row["support"]), key=lambda row: (row["F1"], row["class"]))
    numbers = _numbers(labels, probabilities, matrix, by_class, superclass, wrong)
    tables = {
        "Metrics by class": by_class, "Five best classes": ranked[:-6:-1], "Five worst classes": ranked[:5],
        "Most confused pairs": pairs,
    }  # fmt: skip
    drawings = _figures(labels, probabilities, matrix, by_class, superclass, superclass_names)
    if images is not None and wrong.size:
        text = "Test images that are classified wrongly with the highest probability."
        drawings["mistakes"] = (_mistakes(wrong, labels, probabilities, class_names, images), text)
    figures, descriptions = ({name: pair[i] for name, pair in drawings.items()} for i in (0, 1))
    sentences = (_sentence(numbers, pairs, ranked),)
    return Section("errors", "Where it fails", figures, descriptions, numbers, tables, sentences)


def _numbers(labels, probabilities, matrix, by_class, superclass, wrong):
    predicted = probabilities.argmax(axis=1)
    numbers = {
        "n": len(labels), "accuracy": float(np.mean(predicted == labels)), "macro F1": _mean(by_class, "F1"),
        "macro AUC": _mean(by_class, "AUC"), "confusion matrix": matrix.tolist(),
    }  # fmt: skip
    if len(matrix) > 5:
        numbers["top-5 accuracy"] = top_k(labels, probabilities, 5)
    if superclass is not None:
        numbers["superclass accuracy"] = metrics.coarse_accuracy(labels, probabilities, superclass)
    numbers["most confident mistakes"] = [
        {
            "image": int(i),
            "label": int(labels[i]),
            "predicted": int(predicted[i]),
            "probability": probabilities[i].max(),
        }
        for i in wrong
    ]
    return numbers


def _mean(rows, column):
    known = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(known)) if known else None


def top_k(labels, probabilities, k):
    """The share of images whose label is among the `k` most probable classes, of equal ones the first."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float(np.mean((ranked == labels[:, None]).any(axis=1)))


def _by_class(labels, probabilities, class_names):
    """One row per class: precision, recall, F1, AUC one against rest, support."""
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    classes, predicted = np.arange(len(class_names)), probabilities.argmax(axis=1)
    columns = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=np.nan)
    rows = []
    for label, name, precision, recall, f1, support in zip(classes, class_names, *columns, strict=True):
        own = labels == label
        auc = float(roc_auc_score(own, probabilities[:, label])) if 0 < own.sum() < len(own) else None
        parts = {"precision": precision, "recall": recall, "F1": f1}
        known = {key: None if np.isnan(value) else float(value) for key, value in parts.items()}
        rows.append({"class": name, **known, "AUC": auc, "support": int(support)})
    return rows


def confused_pairs(matrix, class_names):
    """The most confused pairs of classes, counted both ways; the most frequent first, at most `MOST_PAIRS`."""
    both = np.triu(matrix + matrix.T, k=1)
    largest = np.argsort(-both, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [(a, b) for a, b in zip(*np.unravel_index(largest, both.shape), strict=True) if both[a, b]]
    return [
        {
            "pair": f"{class_names[a]} / {class_names[b]}", "images": int(both[a, b]),
            "first taken for second": int(matrix[a, b]), "second taken for first": int(matrix[b, a]),
        }
        for a, b in pairs
    ]  # fmt: skip


def most_confident_mistakes(labels, probabilities):
    """Indices of the wrongly classified images, the highest probability first, at most `MISTAKES`."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]


def _sentence(numbers, pairs, ranked):
    worst, best = ranked[0], ranked[-1]
    text = f"{numbers['accuracy']:.1%} of {numbers['n']:,} images are right"
    if len(ranked) > 1:
        text += (
            f"; by F1 {best['class']} is the easiest class ({best['F1']:.2f}) and {worst['class']} the hardest "
            f"({worst['F1']:.2f})"
        )
    text += "."
    if pairs:
        text += f" The pair confused most is {pairs[0]['pair']}, {pairs[0]['images']} times."
    return text


def _figures(labels, probabilities, matrix, by_class, superclass, superclass_names):
    """All figures but the gallery: `(figure, description)` by name."""
    order = np.arange(len(matrix)) if superclass is None else np.argsort(superclass, kind="stable")
    ordered, names = matrix[np.ix_(order, order)], [by_class[label]["class"] for label in order]
    edges = None if superclass is None else superclass[order]
    of_matrix = "Confusion matrix, rows true and columns predicted, as"
    drawings = {
        "confusion": (confusion_figure(ordered, names, edges), f"{of_matrix} shares of each true class."),
        "counts": (confusion_figure(ordered, names, edges, counts=True), f"{of_matrix} numbers of images."),
    }
    text = "ROC curve of each class against the rest, with the area under it."
    drawings["roc"] = (_roc_figure(labels, probabilities, by_class), text)
    if superclass is not None:
        known = np.flatnonzero(superclass >= 0)
        member = np.eye(len(superclass_names), dtype=int)[superclass[known]]
        coarse = member.T @ matrix[np.ix_(known, known)] @ member
        text = "Confusion matrix of the superclasses, as shares of each true one."
        drawings["superclasses"] = (confusion_figure(coarse, list(superclass_names), None), text)
    return drawings


def confusion_figure(matrix, names, edges, *, counts=False):
    """A heat map of a confusion matrix; cells are annotated up to 20 classes, superclasses outlined where given.

    Args:
        matrix: int `(classes, classes)`, rows true.
        names: one per class, in the matrix' order.
        edges: int `(classes,)`, superclasses in that order, or None.
        counts: show numbers of images instead of percentages of the true class.
    """
    side = max(4.5, 1.8 + 0.38 * len(names)) if len(names) <= FEW else 3 + 0.125 * min(len(names), NAMED)
    figure = titled("images" if counts else "share of the true class", size=(1.12 * side, side))
    panel = figure.add_subplot()
    values = matrix if counts else row_shares(matrix)
    texts = np.where(matrix > 0, matrix if counts else np.round(100 * values).astype(int), "")
    bar = confusion_on(panel, values, texts, names, top=max(matrix.max(), 1) if counts else 1.0)
    if not counts:
        shares(bar.ax.yaxis)
    if edges is not None:
        _outline(panel, edges)
    return figure


def _outline(panel, edges):
    """A square around each superclass."""
    starts = np.flatnonzero(np.r_[True, edges[1:] != edges[:-1]])
    for start, end in zip(starts, np.r_[starts[1:], len(edges)], strict=True):
        x, y = [start, end, end, start, start], [start, start, end, end, start]
        panel.plot(x, y, color=PALETTE[1], linewidth=0.8, clip_on=False)


def _roc_figure(labels, probabilities, by_class):
    """Every class against the rest; of more than 20 classes the five best and worst by area."""
    from sklearn.metrics import roc_curve

    areas = {label: row["AUC"] for label, row in enumerate(by_class) if row["AUC"] is not None}
    ranked = sorted(areas, key=lambda label: -areas[label])
    shown = ranked if len(ranked) <= FEW else [*ranked[:5], *ranked[-5:]]
    figure = titled("ROC, one class against the rest", size=(6, 4.6))
    panel = figure.add_subplot()
    colours = seaborn.color_palette("colorblind", max(10, len(shown)))
    for label, colour in zip(shown, colours, strict=False):
        false, true, _ = roc_curve(labels == label, probabilities[:, label])
        line = "-" if label in shown[: len(shown) // 2] else "--"
        name = f"{named([by_class[label]['class']])[0]} {areas[label]:.3f}"
        panel.plot(false, true, line, color=colour, label=name, linewidth=1.3)
    chance = np.geomspace(1e-3, 1, 50)
    panel.plot(chance, chance, ":", color=GREY, linewidth=1)
    panel.set(xlabel="false positive rate (log scale)", ylabel="true positive rate", xscale="log", xlim=(1e-3, 1))
    shares(panel.xaxis)
    shares(panel.yaxis)
    without_frame(panel, "both")
    if shown:
        panel.legend(fontsize=7.5, frameon=False, title="area", loc="lower right")
    return figure


def _mistakes(wrong, labels, probabilities, class_names, images):
    captions = [
        (f"{class_names[probabilities[i].argmax()]} {probabilities[i].max():.0%}", f"is {class_names[labels[i]]}")
        for i in wrong
    ]
    pictures = np.stack([np.asarray(images[int(i)]) for i in wrong])
    return gallery(pictures, captions, "wrong with the highest probability")
