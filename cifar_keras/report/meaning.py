"""What the study's numbers mean, in sentences that are written from them and turn when they do."""

from dataclasses import dataclass

import numpy as np

from cifar_keras import evaluate
from cifar_keras.units import duration


@dataclass(frozen=True)
class Row:
    """One experiment of the study as the report shows it.

    Attributes:
        name: of the experiment, for people.
        runs: records of its newest best recipe, one a seed.
        published: accuracy on test that the source reported, or None.
        rebuilt: records of the published recipe run here, or ().
        right: bool `(images,)`, which test images the first run gets right, or None where that is not stored.
    """

    name: str
    runs: tuple
    published: float | None = None
    rebuilt: tuple = ()
    right: np.ndarray | None = None

    @property
    def estimate(self):
        """Accuracy on test with its interval."""
        return evaluate.accuracy_interval([run["test_accuracy"] for run in self.runs], self.runs[0]["test_n"])

    @property
    def seconds(self):
        """Mean training time."""
        return float(np.mean([run["training_seconds"] for run in self.runs]))


def sentences(rows):
    """Three sentences on the study: which model is best, what it costs, and what the reader must not conclude.

    Args:
        rows: `Row`s, two or more.
    Returns: list of str.
    """
    ranked = sorted(rows, key=lambda row: -row.estimate.value)
    return [_best(*ranked[:2]), _cost(ranked), _caveat(rows)]


def _said(row):
    e = row.estimate
    return f"{row.name} ({e.value:.1%} [{100 * e.low:.1f}, {100 * e.high:.1f}])"


def _best(first, second):
    difference = _difference(second, first)
    told = "can" if difference.excludes_zero else "can't"
    return (
        f"The most accurate of them on these data is {_said(first)}, before {_said(second)}: the difference of "
        f"{100 * difference.value:.1f} points [{100 * difference.low:.1f}, {100 * difference.high:.1f}] {told} be told "
        "from the draw of the test images."
    )


def _difference(a, b):
    """B minus a: paired where both were measured on the same images."""
    if a.right is not None and b.right is not None and len(a.right) == len(b.right):
        same = a.runs[0]["fingerprint"] == b.runs[0]["fingerprint"]
        if same:
            return evaluate.difference_paired(a.right, b.right)
    pairs = ((row.estimate.value, row.runs[0]["test_n"]) for row in (a, b))
    return evaluate.difference_unpaired(*(part for pair in pairs for part in pair))


def _cost(ranked):
    best, quickest = ranked[0], min(ranked, key=lambda row: row.seconds)
    if best is quickest:
        return f"It is also the one that trains soonest, in {duration(best.seconds)}."
    lost = 100 * (best.estimate.value - quickest.estimate.value)
    return (
        f"It takes {duration(best.seconds)} to train, {best.seconds / quickest.seconds:.1f} times as long as "
        f"{quickest.name} ({duration(quickest.seconds)}), which is {lost:.1f} points less accurate."
    )


def _caveat(rows):
    """The first of these that applies: other weights than called for, other budgets, other data, else the seeds."""
    random = [row.name for row in rows if row.runs[0]["weights"] != row.runs[0]["weights_called_for"]]
    if random:
        return (
            f"Nothing here speaks about pretraining on ImageNet: {_list(random)} started from other weights than the "
            "recipe calls for."
        )
    for column, text in (("budget", "under different budgets"), ("dataset", "on different data")):
        if len({row.runs[0][column] for row in rows}) > 1:
            return f"The rows were measured {text}, so that differences between them are not those of the models alone."
    if all(len(row.runs) == 1 for row in rows):
        return "One training seed stands behind each row: another seed moves a figure by some tenths of a point."
    fewest = min(len(row.runs) for row in rows)
    return f"The intervals cover the draw of {fewest} or more training seeds, on one test set."


def _list(names):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
