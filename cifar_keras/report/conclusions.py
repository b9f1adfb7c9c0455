"""What the study's numbers mean, in sentences that are written from them and turn when they do."""

from dataclasses import dataclass

from cifar_keras.results.matching import Group, compared
from cifar_keras.utils.text import duration


@dataclass(frozen=True)
class Row:
    """One experiment of the study as the report shows it.

    Attributes:
        name: of the experiment, for people.
        group: `matching.Group`, runs of its newest best recipe, one a seed.
        rebuilt: the same of the published recipe run here, or None.
    """

    name: str
    group: Group
    rebuilt: Group | None = None

    @property
    def run(self):
        """The record of the first seed."""
        return self.group.runs[0]

    @property
    def estimate(self):
        """Accuracy on test with its interval."""
        return self.group.estimate

    @property
    def seconds(self):
        """Mean training time; features that came from the cache are counted with what they had taken."""
        return self.group.average("training_seconds") + (self.group.average("cached_seconds") or 0.0)


def sentences(rows):
    """Three sentences on the study: which model is best, what it costs, and what the reader must not conclude.

    Args:
        rows: `Row`s, two or more.
    Returns: list of str.
    """
    ranked = sorted(rows, key=lambda row: -row.estimate.value)
    return [_best(*ranked[:2]), _cost(ranked), _caveats(rows)]


def of_one(row, previous):
    """What one run's numbers mean: its accuracy, what it has learnt by heart, and what it is not.

    Args:
        row: `Row` of one run.
        previous: how it differs from the run before it (`comparison.against_previous`), or None.
    Returns: list of str.
    """
    run, e = row.run, row.estimate
    said = [f"Of {run['test_n']:,} test images {e.value:.1%} are recognised [{100 * e.low:.1f}, {100 * e.high:.1f}]."]
    if (published := run.get("published_test")) is not None:
        if e.low <= published <= e.high:
            said[0] += f" The published figure, {published:.1%}, lies within the interval."
        else:
            said[0] += f" The published figure, {published:.1%}, lies {'below' if published < e.low else 'above'} it."
    if (train := run.get("train_accuracy")) is not None:
        gap = 100 * (train - e.value)
        of_train = f"Of the {run['train_n']:,} training images looked at, {train:.1%} are recognised"
        said.append(f"{of_train}, {abs(gap):.1f} points {'more' if gap >= 0 else 'less'} than of test images.")
    if previous:
        said.append(f"Compared with the same recipe's run before it: {previous}.")
    return [*said, _standing(row)]


def _standing(row):
    """Whether a run is a result of the study, and if not, why."""
    run, why = row.run, []
    if run["budget"] != "full":
        why.append(f"it ran under the budget {run['budget']}")
    if row.group.overrides:
        why.append(f"the command line changed {row.group.overrides}")
    if not _pretrained(row) and run["weights_called_for"] != "source":
        why.append(f"it started from weights {run['weights']} and the model calls for {run['weights_called_for']}")
    seed = "One training seed stands behind these figures; another moves them by some tenths of a point"
    return f"{seed}." if not why else f"{seed}. The run is no result of the study, as {_list(why)}."


def _said(row):
    e = row.estimate
    return f"{row.name} ({e.value:.1%} [{100 * e.low:.1f}, {100 * e.high:.1f}])"


def _best(first, second):
    pair = compared(second.group, first.group)
    difference, told = pair.difference, "can" if pair.distinguishable else "can't"
    return (
        f"The most accurate of them on these data is {_said(first)}, before {_said(second)}: the difference of "
        f"{100 * difference.value:.1f} points [{100 * difference.low:.1f}, {100 * difference.high:.1f}] {told} be told "
        "from chance."
    )


def _cost(ranked):
    best, quickest = ranked[0], min(ranked, key=lambda row: row.seconds)
    if best is quickest:
        return f"It is also the one that trains soonest, in {duration(best.seconds)}."
    lost = 100 * (best.estimate.value - quickest.estimate.value)
    return (
        f"It takes {duration(best.seconds)} to train, {best.seconds / quickest.seconds:.1f} times as long as "
        f"{quickest.name} ({duration(quickest.seconds)}), which is {lost:.1f} points less accurate."
    )


def _caveats(rows):
    """All that stands between these numbers and what one would like to conclude."""
    said = []
    if others := [row.name for row in rows if row.run["weights_called_for"] == "imagenet" and not _pretrained(row)]:
        said.append(f"nothing here speaks about pretraining on ImageNet, as {_list(others)} started from other weights")
    if len({row.run["budget"] for row in rows}) > 1 or any(row.group.overrides for row in rows):
        said.append("the rows were trained under different budgets, so the models alone do not make the differences")
    if len({row.group.test_n for row in rows}) > 1:
        sizes = sorted(row.group.test_n for row in rows)
        said.append(f"they were measured on {sizes[0]:,} to {sizes[-1]:,} test images")
    seeds = [len(row.group.runs) for row in rows]
    if min(seeds) == 1:
        which = "each row" if max(seeds) == 1 else "some of the rows"
        said.append(f"one training seed stands behind {which}; another moves a figure by some tenths of a point")
    else:
        said.append(f"the intervals cover the draw of {min(seeds)} or more training seeds, on one test set")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _pretrained(row):
    return row.run["weights"] == row.run["weights_called_for"]


def _list(names):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
