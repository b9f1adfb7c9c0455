"""Calibration: does 0.9 mean nine in ten?"""

import numpy as np
from scipy import optimize, special

from cifar_keras import metrics
from cifar_keras.explain.base import PALETTE, Section, checked
from cifar_keras.plotting import GREY, drawn, shares, titled, without_frame

BINS = 15  # of equal width, as in Guo et al., arXiv:1706.04599
TEMPERATURES = (0.05, 20.0)  # bounds
TINY = 1e-12  # added to probabilities before a logarithm: stored float16 ones reach zero


@drawn
def calibration(labels, probabilities, val_labels, val_probabilities) -> Section:
    """Reliability and its errors on test, as trained and with a temperature fitted on val.

    Args:
        labels: int `(n,)`, of test.
        probabilities: float `(n, classes)`, rows summing to 1.
        val_labels: the same of val.
        val_probabilities: the same of val.
    Raises: ValueError where labels and probabilities do not match.
    """
    labels, probabilities = checked(labels, probabilities, None)
    t = temperature(*checked(val_labels, val_probabilities, None))
    probabilities, scaled = with_temperature(probabilities, 1.0), with_temperature(probabilities, t)
    before, after = measures(labels, probabilities), measures(labels, scaled)
    numbers = {
        "n": len(labels), "temperature": t, "before": before, "after": after,
        "bins": {name: _binned(labels, p) for name, p in (("before", probabilities), ("after", scaled))},
    }  # fmt: skip
    table = [{"": name, "as trained": before[name], f"temperature {t:.2f}": after[name]} for name in before]
    figure = _figure(labels, {"as trained": probabilities, f"temperature {t:.2f}": scaled})
    return Section(
        "calibration", "How far its probabilities can be trusted", {"reliability": figure},
        {"reliability": "Accuracy against confidence in 15 bins, as trained and with the fitted temperature."},
        numbers, {"Calibration on test": table}, (_sentence(before, after, t),),
    )  # fmt: skip


def temperature(labels, probabilities):
    """The temperature that minimises the negative log-likelihood (Guo et al., arXiv:1706.04599, section 4.2).

    Args:
        labels: int `(n,)`.
        probabilities: float64 `(n, classes)`; logits are their logarithms, up to a constant that softmax ignores.
    Returns: a number in [0.05, 20]; above 1 the model is overconfident.
    """

    def loss(log_t):
        return metrics.cross_entropy(labels, with_temperature(probabilities, np.exp(log_t)))

    found = optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))


def with_temperature(probabilities, temperature):
    """Softmax of the logits divided by a temperature."""
    return special.softmax(np.log(probabilities + TINY) / temperature, axis=1)


def measures(labels, probabilities):
    """ECE of 15 bins, mean confidence, accuracy, NLL in nats, and the Brier score (sum over classes, in [0, 2])."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    target = np.eye(probabilities.shape[1])[labels]
    return {
        "ECE": ece(confidence, right),
        "mean confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "NLL": metrics.cross_entropy(labels, probabilities),
        "Brier": float(np.mean(np.sum((probabilities - target) ** 2, axis=1))),
    }


def bins(confidence, right):
    """`(images, mean confidence, accuracy)` of each of 15 bins; bin k holds confidences in (k/15, (k+1)/15]."""
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    safe = np.maximum(counts, 1)
    means = (np.bincount(index, weights=values, minlength=BINS) / safe for values in (confidence, right))
    return counts, *means


def ece(confidence, right):
    """Expected calibration error: the bins' distances between confidence and accuracy, weighted by their images."""
    counts, mean_confidence, accuracy = bins(confidence, right)
    return float(np.sum(counts * np.abs(mean_confidence - accuracy)) / counts.sum())


def _binned(labels, probabilities):
    """The reliability diagram as rows."""
    columns = bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    names = ("images", "mean confidence", "accuracy")
    return [dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)]


def _figure(labels, both):
    figure = titled("reliability on test", size=(6.8, 3.6))
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, probabilities), colour in zip(panels, both.items(), PALETTE, strict=False):
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        counts, mean_confidence, accuracy = bins(confidence, right)
        kept = counts > 0
        panel.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1)
        panel.bar((np.arange(BINS) + 0.5) / BINS, accuracy, 1 / BINS, color=colour, alpha=0.35, edgecolor="white")
        panel.plot(mean_confidence[kept], accuracy[kept], "o-", color=colour, markersize=4)
        panel.set(xlabel="confidence", xlim=(0, 1), ylim=(0, 1), title=f"{name}: ECE {ece(confidence, right):.3f}")
        shares(panel.xaxis)
        shares(panel.yaxis)
        without_frame(panel, "both")
    panels[0].set_ylabel("accuracy")
    return figure


def _sentence(before, after, t):
    gap = before["mean confidence"] - before["accuracy"]
    verdict = "well calibrated on average" if abs(gap) < 0.005 else "overconfident" if gap > 0 else "underconfident"
    text = (
        f"Its mean confidence is {before['mean confidence']:.1%} at an accuracy of {before['accuracy']:.1%}: it is "
        f"{verdict}. A temperature of {t:.2f}, fitted on val, changes the calibration error on test from "
        f"{before['ECE']:.3f} to {after['ECE']:.3f}; predicted classes stay the same."
    )
    at_bound = min(abs(t / bound - 1) for bound in TEMPERATURES) < 0.01
    return text + (" That temperature is a bound of the search." if at_bound else "")
