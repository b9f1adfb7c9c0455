"""The gap between train and test accuracy, measured both ways."""

from statistics import mean

import numpy as np
from matplotlib.ticker import MaxNLocator

from cifar_keras.plotting import BLUE, GREY, ORANGE, figure_of, shares, without_frame
from cifar_keras.report.summaries.base import class_means, points
from cifar_keras.report.table import markdown_table, percent


def gaps(group):
    """Mean accuracies and gaps of the last epoch's weights, or of the selected weights if the last were not scored.

    Returns: dict of shares: 'running' (the metric that `fit` shows), 'train' (inference mode, no augmentation), 'test',
        'gap_running' and 'gap_inference'.
    """
    train = group.average("last_train_accuracy") or group.average("train_accuracy")
    test = group.average("last_test_accuracy") or group.average("test_accuracy")
    running = mean(run["history"]["accuracy"][-1] for run in group.runs)
    return {
        "running": running, "train": train, "test": test, "gap_running": running - test, "gap_inference": train - test,
    }  # fmt: skip


def text(family):
    """Both gaps of each variant, the part of a published gap that the metric explains, and accuracy by class."""
    rows = []
    for variant, group in family.groups.items():
        g = gaps(group)
        rows.append(
            {
                "variant": variant,
                "train, running": percent(g["running"]),
                "train, inference": percent(g["train"]),
                "test": percent(g["test"]),
                "gap, running": points(g["gap_running"]),
                "gap, inference": points(g["gap_inference"]),
                "best epoch by val": ", ".join(str(run["best_epoch"]) for run in group.runs),
            }
        )
    note = (
        "Gap: train minus test in percentage points, of the last epoch's weights. Running: what `fit` shows, the mean "
        "over an epoch of moving weights with dropout on augmented images. Inference: the final weights without either."
    )
    return ["## The gap, both ways", note, markdown_table(rows), *_artefacts(family), *_by_class(family)]


def _artefacts(family):
    """A sentence on each variant for which the source reported train and test."""
    for variant, group in family.groups.items():
        train, test = (family.published(variant, split) for split in ("train", "test"))
        if train is None or test is None:
            continue
        g = gaps(group)
        metric = g["gap_inference"] - g["gap_running"]
        yield (
            f"**{variant}**: the running metric gives a gap of {points(g['gap_running'])} points, the same network in "
            f"inference mode without augmentation {points(g['gap_inference'])}: the metric alone makes "
            f"{points(-metric)} of it. Published: train {train:.0%}, test {test:.0%}, gap {points(train - test)}; if "
            f"the metric shifts theirs as it shifts ours, their network's own gap was {points(train - test + metric)}."
        )


def _by_class(family):
    """Accuracy by class of the variants for which the source reported some."""
    for variant, published in family.experiment.published_classes.items():
        group = family.groups.get(variant)
        if group and set(published) & set(group.first["class_names"]):
            means = sorted(class_means(group).items(), key=lambda pair: -pair[1])
            rows = [{"class": name, "published": percent(published.get(name)), "here": percent(value)}
                    for name, value in means]  # fmt: skip
            yield f"## Accuracy by class, {variant}"
            yield markdown_table(rows)


def draw(family, path):
    """Draws train and val accuracy by epoch of the published variants, and both gaps of all variants."""
    curves = [variant for variant in family.groups if family.published(variant) is not None] or list(family.groups)[:2]
    with figure_of(path, family.title, size=(11, 4.6)) as figure:
        *panels, bars = figure.subplots(1, len(curves) + 1, width_ratios=[*[1.0] * len(curves), 1.25])
        for panel, variant in zip(panels, curves, strict=True):
            history = family.groups[variant].first["history"]
            panel.plot(history["epoch"], history["accuracy"], "--", color=BLUE, label="train (running)")
            panel.plot(history["epoch"], history["val_accuracy"], color=ORANGE, label="val")
            g = gaps(family.groups[variant])
            panel.plot(history["epoch"][-1], g["train"], "D", color=BLUE, label="train (inference)")
            panel.set(title=variant, xlabel="epoch", ylim=(0.2, 1.02))
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            shares(panel.yaxis)
            without_frame(panel, "both")
        panels[0].legend(frameon=False, fontsize=8)
        panels[0].set_ylabel("accuracy")
        _gap_bars(bars, family)


def _gap_bars(panel, family):
    names = list(family.groups)
    found = [gaps(family.groups[name]) for name in names]
    places = np.arange(len(names))
    for offset, kind, colour in ((-0.2, "running", BLUE), (0.2, "inference", ORANGE)):
        values = [100 * g[f"gap_{kind}"] for g in found]
        bars = panel.barh(places + offset, values, height=0.38, color=colour, label=f"train {kind}")
        panel.bar_label(bars, fmt="%+.1f", fontsize=8, padding=2)
    panel.set_yticks(places, names)
    panel.invert_yaxis()
    panel.axvline(0, color=GREY, linewidth=0.8)
    panel.margins(x=0.18)
    panel.set(title="gap: train minus test, points")
    panel.legend(frameon=False, fontsize=8)
    without_frame(panel, "x")
