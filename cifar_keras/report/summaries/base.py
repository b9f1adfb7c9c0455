"""What the summaries share: the groups that are compared, and how numbers and intervals are shown."""

from dataclasses import dataclass
from statistics import mean

import numpy as np

from cifar_keras.config import Experiment, published_of
from cifar_keras.data import published_apply
from cifar_keras.results.groups import Group


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
