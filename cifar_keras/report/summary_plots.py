"""The figures of experiments' own summaries: records in, one PNG out."""

from statistics import mean

import numpy as np
import seaborn
from matplotlib.ticker import MaxNLocator

from cifar_keras.plotting import BLUE, GREEN, GREY, ORANGE, figure_of, shares, without_frame


def factorial(family, path, factors, word):
    """Accuracy of every cell with its interval: a panel a level of the first factor, a line one of the second.

    Args:
        family: a `summary.Family`.
        path: where the PNG goes.
        factors: `(columns, {variant: levels})` of three factors.
        word: turns a column or a level into words.
    Returns: `path`.
    """
    (panel_by, line_by, x_by), levels = factors
    cells = {levels[variant]: group for variant, group in family.groups.items()}
    panels_of, lines_of, xs = (list(dict.fromkeys(key[place] for key in levels.values())) for place in range(3))
    with figure_of(path, family.title, size=(9, 4.2)) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(panels_of), sharey=True))
        for panel, level in zip(panels, panels_of, strict=True):
            for line, colour, marker in zip(lines_of, (BLUE, ORANGE, GREEN), "os^", strict=False):
                shown = [(place, cells[level, line, x]) for place, x in enumerate(xs) if (level, line, x) in cells]
                counts = sorted({group.test_n for _, group in shown})
                label = f"{line_by} {word(line)} (n = {', '.join(f'{n:,}' for n in counts)})"
                _with_intervals(panel, shown, colour, marker, label)
            panel.set_xticks(range(len(xs)), [word(x) for x in xs])
            panel.set(title=f"{word(panel_by)}: {word(level)}", xlabel=word(x_by), xlim=(-0.4, len(xs) - 0.6))
            without_frame(panel, "y")
        panels[0].set_ylabel("test accuracy")
        shares(panels[0].yaxis)
        panels[-1].legend(frameon=False, fontsize=8)
    return path


def _with_intervals(panel, shown, colour, marker, label, line="-"):
    """Points `(x, Group)` with their 95% intervals."""
    x, estimates = [place for place, _ in shown], [group.estimate for _, group in shown]
    y = np.array([e.value for e in estimates])
    reach = np.array([(e.value - e.low, e.high - e.value) for e in estimates]).reshape(-1, 2).T
    panel.errorbar(x, y, yerr=reach, color=colour, marker=marker, linestyle=line, capsize=3, label=label)


def gap(family, path, gaps):
    """Train and val by epoch of the variants that were published, and both gaps of all."""
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
        _gap_bars(bars, family, gaps)
    return path


def _gap_bars(panel, family, gaps):
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


def selection(family, path):
    """Val by epoch of every variant; where test was followed, that curve and the three epochs that may be reported."""
    with figure_of(path, family.title, size=(9, 4.6)) as figure:
        panel = figure.add_subplot()
        colours = seaborn.color_palette("colorblind", max(3, len(family.groups)))
        for (variant, group), colour in zip(family.groups.items(), colours, strict=False):
            run = group.first
            history = run["history"]
            panel.plot(history["epoch"], history["val_accuracy"], color=colour, label=f"{variant}: val", marker=".")
            panel.plot(history["epoch"], history["accuracy"], "--", color=colour, linewidth=1, alpha=0.6)
            if followed := history.get("test_accuracy"):
                panel.plot(history["epoch"], followed, ":", color=colour, label=f"{variant}: test, audit")
                best = int(np.argmax(followed))
                panel.plot(history["epoch"][best], followed[best], "v", color=colour, markersize=9)
            star = {"color": colour, "markersize": 15, "markeredgecolor": "white"}
            panel.plot(run["best_epoch"], run["test_accuracy"], "*", **star)
        panel.set(xlabel="epoch", ylabel="accuracy")
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        shares(panel.yaxis)
        without_frame(panel, "both")
        panel.legend(frameon=False, fontsize=8)
        figure.supxlabel(
            "Dashed: running train accuracy. Star: test accuracy of the epoch that val selected. Triangle: the best "
            "epoch by test (audit).", fontsize=7.5, color=GREY,
        )  # fmt: skip
    return path


def transfer(family, path, points):
    """Accuracy against labelled images a class, a line a method, with intervals over seeds (over images for one).

    Args:
        family: a `summary.Family`.
        path: where the PNG goes.
        points: `(method, labelled images a class, whether from scratch, group)` by images.
    Returns: `path`.
    """
    with figure_of(path, family.title, size=(7.5, 4.8)) as figure:
        panel = figure.add_subplot()
        methods = dict.fromkeys((method, baseline) for method, _, baseline, _ in points)
        for (method, baseline), colour, marker in zip(methods, (BLUE, GREEN, ORANGE), "osD", strict=False):
            shown = [(count, group) for name, count, _, group in points if name == method]
            _with_intervals(panel, shown, colour, marker, method, line="--" if baseline else "-")
        counts = sorted({count for _, count, _, _ in points})
        panel.set_xscale("log")
        panel.set_xticks(counts, [f"{count:,}" for count in counts], minor=False)
        panel.set_xticks([], minor=True)
        seeds = mean(len(group.runs) for *_, group in points)
        panel.set(xlabel="labelled images a class", ylabel=f"test accuracy, n = {family.first['test_n']:,}")
        drawn = (
            "one seed a point, 95% intervals over images" if seeds == 1 else f"{seeds:.2g} seeds a point, 95% intervals"
        )
        panel.set_title(drawn, fontsize=9, color=GREY)
        shares(panel.yaxis)
        without_frame(panel, "both")
        panel.legend(frameon=False)
    return path
