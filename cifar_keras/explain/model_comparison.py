"""Models compared by their stored predictions on the same images."""

import numpy as np
import seaborn

from cifar_keras import metrics
from cifar_keras.explain.base import Section, checked, gallery, spread
from cifar_keras.plotting import drawn, titled

RIGHT_ALONE = 16  # pictures that one model alone gets right


@drawn
def model_comparison(labels, probabilities, *, images=None, class_names=()) -> Section:
    """Agreement, paired differences, McNemar's test, and the images that one model alone gets right.

    Args:
        labels: int `(n,)`.
        probabilities: `{name: float (n, classes)}` of two models or more, on these images.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255]; None leaves out the gallery.
        class_names: one per class, for the gallery.
    Raises: ValueError for fewer than two, and for predictions that do not match the labels.
    """
    if len(probabilities) < 2:
        raise ValueError(f"`probabilities` must be of two models or more. Received: {list(probabilities)}.")
    names = list(probabilities)
    predicted = {name: checked(labels, values, None)[1].argmax(axis=1) for name, values in probabilities.items()}
    labels = np.asarray(labels)
    right = {name: classes == labels for name, classes in predicted.items()}
    agreement = np.array([[np.mean(predicted[a] == predicted[b]) for b in names] for a in names])
    alone = {name: only_right(right, name) for name in names}
    pairs = [_pair(a, b, right) for place, a in enumerate(names) for b in names[place + 1 :]]
    numbers = {
        "n": len(labels),
        "agreement": {a: dict(zip(names, row, strict=True)) for a, row in zip(names, agreement.tolist(), strict=True)},
        "right alone": {name: int(found.sum()) for name, found in alone.items()},
        "images right alone": {name: np.flatnonzero(found).tolist() for name, found in alone.items()},
        "right by all": int(np.logical_and.reduce(list(right.values())).sum()),
        "right by none": int((~np.logical_or.reduce(list(right.values()))).sum()),
    }
    figures = {"agreement": _agreement_figure(agreement, names)}
    descriptions = {"agreement": "Share of test images to which two models give the same class."}
    if images is not None and any(found.any() for found in alone.values()):
        figures["alone"] = _alone_figure(alone, labels, images, class_names)
        descriptions["alone"] = "Images that one model alone classifies correctly."
    tables = {"Pairs of models": pairs}
    sentences = (_sentence(numbers, pairs),)
    return Section("versus", "Models against each other", figures, descriptions, numbers, tables, sentences)


def only_right(right, name):
    """Bool `(n,)`: the images that this model alone gets right."""
    others = [values for other, values in right.items() if other != name]
    return right[name] & ~np.logical_or.reduce(others)


def bootstrap(correct_a, correct_b, *, repetitions=2000, seed=0):
    """The 95% percentile interval of the difference of two accuracies when the images are resampled (Efron, 1979).

    Returns: `(low, high)` of b minus a, for bool `(n,)` arrays.
    """
    difference = correct_b.astype("int8") - correct_a.astype("int8")
    counts = np.array([(difference == value).sum() for value in (-1, 0, 1)])
    draws = np.random.RandomState(seed).multinomial(len(difference), counts / len(difference), size=repetitions)
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / len(difference), (0.025, 0.975))
    return float(low), float(high)


def _pair(a, b, right):
    difference = metrics.difference_paired(right[a], right[b])
    test = metrics.mcnemar(right[a], right[b])
    low, high = bootstrap(right[a], right[b])
    return {
        "first": a, "second": b, "second minus first": difference.value, "low": difference.low, "high": difference.high,
        "bootstrap low": low, "bootstrap high": high, "McNemar p": test.p, "first alone right": test.only_a,
        "second alone right": test.only_b,
    }  # fmt: skip


def _agreement_figure(agreement, names):
    figure = titled("share of images given the same class", size=(4 + 1.1 * len(names), 2.2 + 0.8 * len(names)))
    panel = figure.add_subplot()
    off = agreement[~np.eye(len(names), dtype=bool)]
    seaborn.heatmap(
        agreement, ax=panel, cmap="Blues", vmin=min(0.5, off.min()), vmax=1, annot=True, fmt=".3f",
        xticklabels=names, yticklabels=names, linewidths=0.5, cbar=False,
    )  # fmt: skip
    panel.tick_params(axis="x", rotation=30)
    panel.tick_params(axis="y", rotation=0)
    return figure


def _alone_figure(alone, labels, images, class_names):
    """Images that each model alone gets right, about the same number for each."""
    share = -(-RIGHT_ALONE // len(alone))
    chosen = [(name, int(i)) for name, found in alone.items() for i in spread(np.flatnonzero(found), labels, share)]
    captions = [(class_names[labels[i]], f"to {name} alone") for name, i in chosen]
    return gallery(np.stack([np.asarray(images[i]) for _, i in chosen]), captions, "right by one alone")


def _sentence(numbers, pairs):
    n, differing = numbers["n"], [pair for pair in pairs if pair["low"] > 0 or pair["high"] < 0]
    return (
        f"All models are right on {numbers['right by all'] / n:.1%} of {n:,} images and none on "
        f"{numbers['right by none'] / n:.1%}; {len(differing)} of {len(pairs)} pairs differ by more than the draw "
        "of the test images explains."
    )
