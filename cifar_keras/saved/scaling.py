"""Which input scaling a model from elsewhere needs: tried on labelled images, and chosen only beyond their noise."""

import numpy as np

from cifar_keras.metrics import mcnemar
from cifar_keras.saved import labels

SIGNIFICANCE = 0.05  # a larger p is no difference
TRIED = 200  # labelled images on which scalings are compared


def best(classifier, outcomes, *, classes):
    """The classifier with the scaling that gets most of some labelled images right, where they show it.

    Where the model names no classes, its outputs may be in another order than assumed, which would hide the right
    scaling. Then each scaling counts with the order that fits it, if that order fits far better.

    Args:
        classifier: `inference.Classifier`.
        outcomes: takes a classifier, returns true and predicted classes, int `(n,)` each.
        classes: how many there are.
    Returns: `(classifier, sentence)`; without any image the classifier as it was, and None.
    """
    assumed = "class_names" not in classifier.provenance
    right, notes, truth = {}, {}, np.empty(0, int)
    for scaling in classifier.scalings:
        truth, chosen = outcomes(classifier.scaled(scaling))
        order = _better_order(truth, chosen, classes, tries=len(classifier.scalings)) if assumed else None
        notes[scaling] = "" if order is None else " with the outputs in another order"
        right[scaling] = truth == (chosen if order is None else order[chosen])
    if not len(truth):
        return classifier, None
    name, verdict = chosen_scaling(right, np.bincount(truth).max() / len(truth))
    shares = ", ".join(f"{scaling} {np.mean(one):.1%}{notes[scaling]}" for scaling, one in right.items())
    return classifier.scaled(name), f"input scaling not given; right of {len(truth)} images: {shares}. {verdict}"


def _better_order(truth, chosen, classes, *, tries):
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (truth, chosen), 1)
    return labels.better_order(confusion, tries=tries)


def chosen_scaling(right, guessing):
    """Which of several scalings to use, by how often each is right on the same images.

    Args:
        right: scaling -> bool `(n,)`, whether each image got its class; n above 0.
        guessing: the share that the commonest class alone would get right, in [0, 1].
    Returns: `(scaling, sentence)`. The sentence names the scalings that are not distinguishable from the best one (at
        5%, McNemar's exact test). It is 'raw' where none beats guessing, by a binomial test times the scalings tried.
    """
    from scipy import stats

    best, *others = sorted(right, key=lambda scaling: -np.sum(right[scaling]))
    count, total = int(np.sum(right[best])), len(right[best])
    above, below = (stats.binomtest(count, total, guessing, alternative=side).pvalue for side in ("greater", "less"))
    if above * len(right) >= SIGNIFICANCE:
        named = "|".join(scaling for scaling in right if scaling != "raw")
        order = (
            " All lie below it: the classes are probably in another order." if below * len(right) < SIGNIFICANCE else ""
        )
        return "raw", (
            f"None beats guessing ({guessing:.1%}, the commonest class).{order} Used: raw, as none is better; "
            f"give more images, or state the scaling: --input-scaling {named}"
        )
    tied = [other for other in others if mcnemar(right[best], right[other]).p >= SIGNIFICANCE]
    if not tied:
        return best, f"Used: {best}"
    are = "are" if len(tied) > 1 else "is"
    return best, (
        f"Used: {best}, from which {', '.join(tied)} {are} not distinguishable on these images; "
        "--input-scaling states another"
    )
