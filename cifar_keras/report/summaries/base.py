"""What the summaries share: the groups that are compared, and how numbers and intervals are shown."""

from dataclasses import dataclass
from statistics import mean

import numpy as np

from cifar_keras import metrics
from cifar_keras.config import Experiment, published_of
from cifar_keras.data import published_apply
from cifar_keras.report.table import DASH
from cifar_keras.results.groups import Group
from cifar_keras.results.matching import LEVEL, compared


@dataclass(frozen=True)
class Family:
    """The groups of one experiment that are compared: same data, budget, backbone, precision and starting weights."""

    experiment: Experiment
    name: str  # of its files
    groups: dict[str, Group]  # by variant, in the experiment's order; empty before the first run
    source: str = "none"  # the weights that all but the baselines start from

    @property
    def first(self):
        """The first run, for what all of them share."""
        return next(iter(self.groups.values())).first

    @property
    def title(self):
        """The experiment, its data, and what else identifies the family."""
        if not self.groups:
            return f"{self.experiment.key}: {self.experiment.about}, not yet run"
        first, more = self.first, []
        if first["budget"] != "full":
            more.append(f"budget {first['budget']}")
        if self.source not in ("none", first["weights_called_for"]):
            more.append(f"from {self.source}")
        group = next(iter(self.groups.values()))
        more += [group.backbone_note, first["overrides"], group.precision_note]
        return ", ".join((f"{first['experiment']}: {first['dataset']}", *(part for part in more if part)))

    def published(self, variant, split="test"):
        """The accuracy that the source reported, or None: on other data than CIFAR-10, or with another backbone."""
        config = self.first["config"] if self.groups else None
        if config and not published_apply(config["dataset"], config["overrides"]):
            return None
        return published_of(self.experiment.published, variant).get(split)


def is_baseline(group):
    """Whether these runs start from random weights, whatever `--weights` names."""
    return (group.config["training"] or {}).get("weights") == "none"


@dataclass(frozen=True)
class Difference:
    """How much more accurate one group is than another.

    Attributes:
        estimate: `metrics.Estimate` of the difference, over the seeds that both have.
        p: of the test that belongs to it, in [0, 1]; None where a single seed has no stored predictions.
        seeds: how many.
    """

    estimate: metrics.Estimate
    p: float | None
    seeds: int

    def shown(self):
        """'+1.3 [+0.4, +2.2] (paired t, 3 seeds)'."""
        return f"{self.estimate.points()} ({self.estimate.kind}, {self.seeds} seed{'s' * (self.seeds > 1)})"


def difference(base, group):
    """`group` minus `base`, paired by seed, or by image where they share a single seed; None if they share none."""
    ours, theirs = ({run["seed"]: run for run in side.runs} for side in (group, base))
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) > 1:
        before, after = ([side[seed]["test_accuracy"] for seed in seeds] for side in (theirs, ours))
        estimate = metrics.difference_seeds_paired(before, after, n=group.test_n)
        return Difference(estimate, metrics.paired_t_test(before, after, n=group.test_n), len(seeds))
    for seed in seeds:
        pair = compared(Group((theirs[seed],), base.folder), Group((ours[seed],), group.folder))
        return Difference(pair.difference, pair.test.p if pair.test else None, 1)
    return None


def corrected(differences):
    """Holm's correction of the p-values of several `Difference`s, some of which may be None or lack one.

    Returns: `(list of corrected p-values or None, how many comparisons they are corrected for)`.
    """
    known = [d is not None and d.p is not None for d in differences]
    found = iter(metrics.holm([d.p for d, has in zip(differences, known, strict=True) if has]))
    return [next(found) if has else None for has in known], sum(known)


def is_clear(found, p):
    """Whether a `Difference` or None, with its corrected p-value or None, is unlikely to be chance."""
    return found is not None and (found.estimate.excludes_zero if p is None else p < LEVEL)


def verdict(found, p):
    """'helps', 'hurts' or 'can't be told from zero'; a dash without a difference. Arguments as for `is_clear`."""
    if found is None:
        return DASH
    if not is_clear(found, p):
        return "can't be told from zero"
    return "helps" if found.estimate.value > 0 else "hurts"


def correction(count):
    """A sentence on the p-values of a table: how many comparisons they are corrected for, and what verdicts follow."""
    if not count:
        return "No p-values, since no predictions are stored; verdicts follow the intervals, which are not corrected."
    plural = "s" * (count > 1)
    return (
        f"p: corrected for {count} comparison{plural} (Holm). Verdicts follow p < {LEVEL:g}, or the interval without p."
    )


def significance(p):
    """A p-value as text: '0.031', '< 0.001', or a dash."""
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def class_means(group):
    """Mean accuracy over seeds by class name, for the classes that have test images."""
    columns = zip(group.first["class_names"], *(run["class_accuracy"] for run in group.runs), strict=True)
    return {name: mean(values) for name, *values in columns if None not in values}


def points(difference):
    """'+1.3'."""
    return f"{100 * difference:+.1f}"


def with_intervals(panel, shown, colour, marker, label, line="-"):
    """Draws points `(x, Group)` with their 95% intervals."""
    x, estimates = [x for x, _ in shown], [group.estimate for _, group in shown]
    y = np.array([e.value for e in estimates])
    reach = np.array([(e.value - e.low, e.high - e.value) for e in estimates]).reshape(-1, 2).T
    panel.errorbar(x, y, yerr=reach, color=colour, marker=marker, linestyle=line, capsize=3, label=label)
