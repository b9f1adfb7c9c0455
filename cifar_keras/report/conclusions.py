"""Sentences on what the numbers mean. They are written from the numbers and change with them."""

from cifar_keras.results.matching import compared
from cifar_keras.utils.text import duration


def sentences(groups):
    """Three sentences on the study: the best model, its cost, and what does not follow from these numbers.

    Args:
        groups: `results.groups.Group`s of two experiments or more.
    Returns: list of str.
    """
    ranked = sorted(groups, key=lambda group: -group.estimate.value)
    return [_best(*ranked[:2]), _cost(ranked), _caveats(groups)]


def of_one(group, previous):
    """Sentences on one run: its accuracy, how far it overfits, and why it is no result of the study, if it is none.

    Args:
        group: `results.groups.Group` of one run.
        previous: the difference to the run before it (`comparison.against_previous`), or None.
    Returns: list of str.
    """
    run, e = group.first, group.estimate
    found = [f"Of {group.test_n:,} test images, {e.value:.1%} are classified correctly {e.bounds()}."]
    if (published := run.get("published_test")) is not None:
        place = "below it" if published < e.low else "above it" if published > e.high else "within the interval"
        found[0] += f" The published figure, {published:.1%}, lies {place}."
    if (train := run.get("train_accuracy")) is not None:
        gap = 100 * (train - e.value)
        of_train = f"Of {run['train_n']:,} training images, {train:.1%} are classified correctly"
        found.append(f"{of_train}, {abs(gap):.1f} points {'more' if gap >= 0 else 'less'} than of test images.")
    if previous:
        found.append(f"Compared with the previous run of the same recipe: {previous}.")
    return [*found, _standing(group)]


def _standing(group):
    """Whether a run is a result of the study, and if not, why."""
    run, why = group.first, []
    if run["budget"] != "full":
        why.append(f"it ran under the budget {run['budget']}")
    if group.overrides:
        why.append(f"the command line changed {group.overrides}")
    if not _pretrained(group) and run["weights_called_for"] != "source":
        why.append(f"it started from weights {run['weights']} and the model calls for {run['weights_called_for']}")
    seed = "These figures come from one training seed; another seed changes them by some tenths of a point"
    return f"{seed}." if not why else f"{seed}. The run is no result of the study: {_list(why)}."


def _best(first, second):
    pair = compared(second, first)
    d, chance = pair.difference, "is unlikely to be" if pair.distinguishable else "may be"
    return (
        f"The most accurate model on these data is {first.name} ({first.estimate.accuracy()}), followed by "
        f"{second.name} ({second.estimate.accuracy()}): the difference of {100 * d.value:.1f} points {d.bounds()} "
        f"{chance} due to chance."
    )


def _cost(ranked):
    best, quickest = ranked[0], min(ranked, key=lambda group: group.seconds)
    if best is quickest:
        return f"It also trains fastest, in {duration(best.seconds)}."
    lost = 100 * (best.estimate.value - quickest.estimate.value)
    return (
        f"It takes {duration(best.seconds)} to train, {best.seconds / quickest.seconds:.1f} times as long as "
        f"{quickest.name} ({duration(quickest.seconds)}), which is {lost:.1f} points less accurate."
    )


def _caveats(groups):
    """What the reader must not conclude from these numbers."""
    found = []
    if others := [g.name for g in groups if g.first["weights_called_for"] == "imagenet" and not _pretrained(g)]:
        found.append(f"nothing here is evidence on ImageNet pretraining: {_list(others)} started from other weights")
    if len({group.first["budget"] for group in groups}) > 1 or any(group.overrides for group in groups):
        found.append(
            "the models were trained under different budgets, so the models alone do not explain the differences"
        )
    sizes = sorted({group.test_n for group in groups})
    if len(sizes) > 1:
        found.append(f"they were measured on {sizes[0]:,} to {sizes[-1]:,} test images")
    seeds = [len(group.runs) for group in groups]
    if min(seeds) == 1:
        which = "each figure comes" if max(seeds) == 1 else "some figures come"
        found.append(f"{which} from one training seed; another seed changes it by some tenths of a point")
    else:
        found.append(f"the intervals cover the variation over {min(seeds)} or more training seeds, on one test set")
    text = "; ".join(found)
    return f"{text[0].upper()}{text[1:]}."


def _pretrained(group):
    return group.first["weights"] == group.first["weights_called_for"]


def _list(names):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
