"""Errors: which classes are taken for which, and which mistakes are made with confidence."""

import numpy as np
import seaborn
from matplotlib.colors import PowerNorm

from cifar_keras import metrics
from cifar_keras.explain.base import COLOURS, Section, checked, drawn, figure_of, gallery, named, shares
from cifar_keras.plotting import FEW, GREY, NAMED, without_frame

MISTAKES = 20  # pictures in the gallery
PAIRS = 10  # most confused


@drawn
def errors(labels, probabilities, class_names, *, images=None, superclass=None, superclass_names=()):
    """Confusions, metrics a class, ROC, and the most confident mistakes.

    Args:
        labels: int `(n,)`.
        probabilities: float `(n, classes)`, rows summing to 1.
        class_names: one a class.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255], anything indexable; None leaves out the gallery.
        superclass: int `(classes,)`, each class's superclass, or None.
        superclass_names: one a superclass.
    Returns: `Section`. Classes without images have None where a figure needs some.
    Raises: ValueError where labels, probabilities and names do not go together.
    """
    labels, probabilities = checked(labels, probabilities, class_names)
    predicted = probabilities.argmax(axis=1)
    matrix = metrics.confusion(labels, probabilities)
    by_class = _by_class(labels, predicted, probabilities, class_names)
    if superclass is not None:
        known = [superclass_names[s] if s >= 0 else None for s in superclass]  # -1: no image of it was seen
        by_class = [{**row, "superclass": name} for row, name in zip(by_class, known, strict=True)]
    pairs = confused_pairs(matrix, class_names)
    ranked = sorted((row for row in by_class if row["support"]), key=lambda row: (row["F1"], row["class"]))
    numbers = {
        "n": len(labels),
        "accuracy": float(np.mean(predicted == labels)),
        "macro F1": _mean(by_class, "F1"),
        "macro AUC": _mean(by_class, "AUC"),
        "confusion matrix": matrix.tolist(),
    }
    if len(class_names) > 5:
        numbers["top-5 accuracy"] = top_k(labels, probabilities, 5)
    order = np.arange(len(class_names))
    if superclass is not None:
        numbers["superclass accuracy"] = metrics.coarse_accuracy(labels, probabilities, np.asarray(superclass))
        order = np.argsort(superclass, kind="stable")
    tables = {
        "Metrics by class": by_class,
        "Five best classes": ranked[:-6:-1],
        "Five worst classes": ranked[:5],
        "Most confused pairs": pairs,
    }
    figures, descriptions = _figures(matrix, order, by_class, superclass, labels, probabilities)
    if superclass is not None:
        figures["superclasses"] = _superclass_figure(matrix, np.asarray(superclass), superclass_names)
        descriptions["superclasses"] = "Confusion matrix of the superclasses, as shares of each true one."
    wrong = most_confident_mistakes(labels, probabilities)
    numbers["most confident mistakes"] = [
        {
            "image": int(i),
            "label": int(labels[i]),
            "predicted": int(predicted[i]),
            "probability": probabilities[i].max(),
        }
        for i in wrong
    ]
    if images is not None and wrong.size:
        figures["mistakes"] = _mistakes(wrong, labels, predicted, probabilities, class_names, images)
        descriptions["mistakes"] = "Test images that are classified wrongly with the highest probability."
    said = (_said(numbers, pairs, ranked),)
    return Section("errors", "Where it fails", figures, descriptions, numbers, tables, said)


def _mean(rows, column):
    known = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(known)) if known else None


def top_k(labels, probabilities, k):
    """The share of images whose label is among the `k` most probable classes, of equal ones the first."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float(np.mean((ranked == labels[:, None]).any(axis=1)))


def _by_class(labels, predicted, probabilities, class_names):
    """A row a class: precision, recall, F1, AUC one against rest, support."""
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    classes = np.arange(len(class_names))
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
    """The pairs of classes that are taken for each other most often, counted both ways.

    Args:
        matrix: int `(classes, classes)`, rows true.
        class_names: one a class.
    Returns: list of dicts, most frequent first, at most `PAIRS`, none without confusions.
    """
    both = np.triu(matrix + matrix.T, k=1)
    places = np.argsort(-both, axis=None, kind="stable")[:PAIRS]
    pairs = [(a, b) for a, b in zip(*np.unravel_index(places, both.shape), strict=True) if both[a, b]]
    return [
        {
            "pair": f"{class_names[a]} / {class_names[b]}",
            "images": int(both[a, b]),
            "first taken for second": int(matrix[a, b]),
            "second taken for first": int(matrix[b, a]),
        }
        for a, b in pairs
    ]


def most_confident_mistakes(labels, probabilities):
    """Indices of the wrongly classified images, the highest probability first, at most `MISTAKES`."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]


def _said(numbers, pairs, ranked):
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


def _figures(matrix, order, by_class, superclass, labels, probabilities):
    """All but the gallery."""
    ordered = matrix[np.ix_(order, order)]
    names = [by_class[label]["class"] for label in order]
    totals = ordered.sum(axis=1, keepdims=True)
    parts = np.divide(ordered, totals, out=np.zeros(ordered.shape), where=totals > 0)
    edges = None if superclass is None else np.asarray(superclass)[order]
    figures = {
        "confusion": confusion_figure(parts, ordered, names, edges),
        "counts": confusion_figure(ordered, ordered, names, edges, counts_only=True),
        "roc": _roc_figure(labels, probabilities, by_class),
    }
    descriptions = {
        "confusion": "Confusion matrix, rows true and columns predicted, as shares of each true class.",
        "counts": "Confusion matrix, rows true and columns predicted, as numbers of images.",
        "roc": "ROC curve of each class against the rest, with the area under it.",
    }
    return figures, descriptions


def confusion_figure(values, counts, names, edges, *, counts_only=False):
    """A heat map of a confusion matrix; cells are annotated up to 20 classes, superclasses outlined where given.

    Args:
        values: `(classes, classes)` that colour the cells.
        counts: int `(classes, classes)` that annotate them.
        names: one a class, in the matrix' order.
        edges: int `(classes,)`, superclasses in that order, or None.
        counts_only: whether the values are counts.
    """
    few = len(names) <= FEW
    side = max(4.5, 1.8 + 0.38 * len(names)) if few else 3 + 0.125 * min(len(names), NAMED)
    figure = figure_of("images" if counts_only else "share of the true class", size=(1.12 * side, side))
    panel = figure.add_subplot()
    top = values.max() if counts_only and values.size else 1
    annotation = (
        np.where(counts > 0, counts if counts_only else np.round(100 * values).astype(int), "") if few else None
    )
    seaborn.heatmap(
        values, ax=panel, cmap="Blues", norm=PowerNorm(0.5, 0, max(top, 1e-9)), annot=annotation, fmt="",
        annot_kws={"fontsize": 8}, square=True, linewidths=0.5 if few else 0, cbar_kws={"shrink": 0.6},
    )  # fmt: skip
    shown = range(0, len(names), -(-len(names) // NAMED))
    for axis in (panel.xaxis, panel.yaxis):
        ticks = named([names[i] for i in shown])
        axis.set_ticks(np.array(shown) + 0.5, ticks, fontsize=8.5 if few else 5.5)
    panel.tick_params(axis="x", rotation=90, length=2)
    panel.tick_params(axis="y", rotation=0, length=2)
    if not counts_only:
        shares(panel.collections[0].colorbar.ax.yaxis)
    panel.set(xlabel="predicted", ylabel="true")
    if edges is not None:
        _outline(panel, edges)
    return figure


def _superclass_figure(matrix, superclass, names):
    """The confusion matrix with classes summed into their superclasses."""
    known = np.flatnonzero(superclass >= 0)
    member = np.eye(len(names), dtype=int)[superclass[known]]
    coarse = member.T @ matrix[np.ix_(known, known)] @ member
    totals = coarse.sum(axis=1, keepdims=True)
    parts = np.divide(coarse, totals, out=np.zeros(coarse.shape), where=totals > 0)
    return confusion_figure(parts, coarse, list(names), None)


def _outline(panel, edges):
    """A square around each superclass."""
    starts = np.flatnonzero(np.r_[True, edges[1:] != edges[:-1]])
    for start, end in zip(starts, np.r_[starts[1:], len(edges)], strict=True):
        x, y = [start, end, end, start, start], [start, start, end, end, start]
        panel.plot(x, y, color=COLOURS[1], linewidth=0.8, clip_on=False)


def _roc_figure(labels, probabilities, by_class):
    """Every class against the rest; beyond 20 classes the five best and worst by area."""
    from sklearn.metrics import roc_curve

    areas = {label: row["AUC"] for label, row in enumerate(by_class) if row["AUC"] is not None}
    ranked = sorted(areas, key=lambda label: -areas[label])
    shown = ranked if len(ranked) <= FEW else [*ranked[:5], *ranked[-5:]]
    figure = figure_of("ROC, one class against the rest", size=(6, 4.6))
    panel = figure.add_subplot()
    colours = seaborn.color_palette("colorblind", max(10, len(shown)))
    for label, colour in zip(shown, colours, strict=False):
        false, true, _ = roc_curve(labels == label, probabilities[:, label])
        line = "-" if label in shown[: len(shown) // 2] else "--"
        panel.plot(
            false,
            true,
            line,
            color=colour,
            label=f"{named([by_class[label]['class']])[0]} {areas[label]:.3f}",
            linewidth=1.3,
        )
    chance = np.geomspace(1e-3, 1, 50)
    panel.plot(chance, chance, ":", color=GREY, linewidth=1)
    panel.set(xlabel="share of the others taken for it (log scale)", ylabel="share of it that is found")
    panel.set(xscale="log", xlim=(1e-3, 1))
    shares(panel.xaxis), shares(panel.yaxis)
    without_frame(panel, "both")
    if shown:
        panel.legend(fontsize=7.5, frameon=False, title="area", loc="lower right")
    return figure


def _mistakes(wrong, labels, predicted, probabilities, class_names, images):
    said = (f"{class_names[predicted[i]]} {probabilities[i].max():.0%}" for i in wrong)
    captions = [(text, f"is {class_names[labels[i]]}") for text, i in zip(said, wrong, strict=True)]
    pictures = np.stack([np.asarray(images[int(i)]) for i in wrong])
    return gallery(pictures, captions, "wrong with the highest probability")
