"""Accuracy against training time: the report's first figure, and the README's of every measured row."""

from itertools import cycle

import seaborn
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cifar_keras.data.cifar import ARCHIVES
from cifar_keras.plotting import GREY, figure_of, shares, without_frame
from cifar_keras.report.table import counts
from cifar_keras.results.groups import newest_recipes
from cifar_keras.utils.text import duration

SECONDS = (1, 3, 10, 30, *(60 * minutes for minutes in (1, 2, 5, 10, 20, 60, 180, 600, 1800)))  # ticks
ACCURACIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
MARKERS = "osD^vPX"
OFFICIAL = ARCHIVES["cifar10"].label
HOLLOW = {"markerfacecolor": "none", "markersize": 9}


def coloured(groups):
    """Each group with a colour and a marker of its own."""
    colours = seaborn.color_palette("colorblind", len(groups))
    return zip(groups, colours, cycle(MARKERS), strict=False)


def mark(panel, seconds, group, *, colour, marker):
    """Marks a group's accuracy with its 95% interval at `seconds`. Returns the mark, for a legend."""
    e = group.estimate
    reach = [[e.value - e.low], [e.high - e.value]]
    return panel.errorbar(
        seconds, e.value, yerr=reach, color=colour, marker=marker, markersize=9, capsize=4, linestyle="none"
    )


def finish(panel, label):
    """The axes: time on a logarithmic scale, accuracy in percent."""
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(SECONDS))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    panel.xaxis.set_minor_locator(NullLocator())
    shares(panel.yaxis)
    panel.margins(x=0.15, y=0.15)
    panel.set(xlabel=label, ylabel="test accuracy")
    without_frame(panel, "both")


def rows(records):
    """The groups of the figure of every row: results of the study on the official images whose time is known.

    Time is processor time divided by cores: it means the same where other work shared the machine.

    Returns: list of `(Group, seconds)`.
    """
    found = []
    for group in newest_recipes(records):
        used, cores = group.average("cpu_seconds"), group.first.get("cores")
        if counts(group.first) and group.first["dataset"] == OFFICIAL and used and cores:
            found.append((group, used / cores + (group.average("cached_seconds") or 0.0)))
    return found


def draw(records, path):
    """Draws every row into a PNG; nothing where there is none.

    Args:
        records: run records of the study's experiments.
        path: of the picture.
    """
    found = rows(records)
    if not found:
        return
    marks, hollow = {}, {}
    with figure_of(path, f"Accuracy against training time, official {OFFICIAL}", size=(10, 4.8)) as figure:
        panel = figure.add_subplot()
        for (group, seconds), colour, marker in coloured(found):
            marks[_label(group)] = mark(panel, seconds, group, colour=colour, marker=marker)
            if (augmented := group.average("tta_accuracy")) is not None:
                panel.plot(seconds, augmented, color=colour, marker=marker, **HOLLOW)
                hollow["hollow: mean over six views"] = Line2D(
                    [], [], color=GREY, marker="o", linestyle="none", **HOLLOW
                )
        marks |= hollow
        panel.set_yscale("logit")  # which shows the differences near 100% as well as those near 50%
        panel.yaxis.set_major_locator(FixedLocator(ACCURACIES))
        panel.yaxis.set_minor_locator(NullLocator())
        finish(panel, "processor time of training, divided by cores (log scale)")
        panel.legend(marks.values(), marks, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, labelspacing=0.9)


def _label(group):
    run = group.first
    seeds = len(group.runs)
    notes = (run.get("backbone"), group.precision_note.removeprefix("mixed_"), f"{seeds} seeds" if seeds > 1 else "")
    name = f"{run['experiment'].partition('_')[0]} {run['variant']}: {group.estimate.value:.1%}"
    return "\n".join((name, ", ".join(filter(None, notes))))
