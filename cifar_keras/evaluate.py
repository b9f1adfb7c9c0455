"""Metrics: NumPy in, numbers out."""

import numpy as np


def accuracy(labels, probabilities):
    """The share of images whose most probable class is the label, in [0, 1]."""
    return float(np.mean(np.argmax(probabilities, axis=1) == labels))


def cross_entropy(labels, probabilities):
    """Mean negative log-likelihood in nats; probabilities below float32's smallest step from zero count as that."""
    chosen = probabilities[np.arange(len(labels)), labels].astype("float64")
    return float(-np.mean(np.log(np.maximum(chosen, np.finfo("float32").tiny))))


def confusion(labels, probabilities):
    """Counts `(classes, classes)`, true classes as rows, predicted ones as columns."""
    classes = probabilities.shape[1]
    pairs = labels * classes + np.argmax(probabilities, axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def wilson(accuracy, n, *, confidence=0.95):
    """The Wilson score interval of one accuracy measured on `n` images (Wilson, JASA 22, 1927).

    Returns: `(low, high)`.
    """
    from scipy import stats  # a second to load, which `--help` and `list` need not spend

    interval = stats.binomtest(round(accuracy * n), n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
