"""A factorial: which of the factors matters?"""

from statistics import mean

import numpy as np

from cifar_keras import metrics
from cifar_keras.plotting import BLUE, GREEN, ORANGE, figure_of, shares, without_frame
from cifar_keras.report.summaries.base import with_intervals
from cifar_keras.report.table import DASH, markdown_table, percent

DESCRIPTIVE = ("images_per_second",)  # columns of a model that change no result
WORDS = {
    "frozen_norm": "BatchNorm",
    None: "inference",
}  # for readers: a column, and the level that a variant leaves out


def factors(experiment):
    """The columns in which an experiment's variants differ, and each variant's levels.

    Returns: `(columns, {variant: levels})`.
    """
    changed = {variant: training.override for variant, training in experiment.variants.items()}
    columns = dict.fromkeys(column for override in changed.values() for column in override)
    columns = [c for c in columns if c not in DESCRIPTIVE and len({o.get(c) for o in changed.values()}) > 1]
    return columns, {variant: tuple(override.get(c) for c in columns) for variant, override in changed.items()}


def word(name):
    """A column or a level in words."""
    return str(WORDS.get(name, name))


def text(family):
    """The main effect of each factor, and what may be concluded."""
    columns, levels = factors(family.experiment)
    cells = {levels[variant]: group for variant, group in family.groups.items()}
    if len(cells) < len(family.experiment.variants):
        return [f"{len(cells)} of {len(family.experiment.variants)} cells have been run: no effects yet."]
    effects = {word(column): _effect(cells, place) for place, column in enumerate(columns)}
    rows = [
        {
            "factor": name,
            "change": f"{word(low)} -> {word(high)}",
            "effect on test, points": estimate.points() if estimate else DASH,
        }
        for name, (low, high, estimate) in effects.items()
    ]
    note = (
        "The mean change over the other factors' levels, with the 95% interval that the draw of the test images gives. "
        "Cells that differ in their numbers of images are not compared."
    )
    return ["## Main effects", note, markdown_table(rows), conclusion(family, effects)]


def _effect(cells, place):
    """One factor's two levels and the mean change from the first to the second; None if the data differ."""
    low, high = dict.fromkeys(levels[place] for levels in cells)
    pairs = [(cells[(*k[:place], low, *k[place + 1 :])], group) for k, group in cells.items() if k[place] == high]
    pairs = [(a, b) for a, b in pairs if _data(a) == _data(b)]
    if not pairs:
        return low, high, None
    change = mean(b.estimate.value - a.estimate.value for a, b in pairs)
    half = 1.96 * sum(_variance(group) for pair in pairs for group in pair) ** 0.5 / len(pairs)
    return low, high, metrics.Estimate(change, change - half, change + half, "normal")


def _data(group):
    return group.first["train_images"], group.test_n


def _variance(group):
    """The variance of a mean accuracy, from the draw of the test images."""
    p = group.estimate.value
    return p * (1 - p) / group.test_n


def conclusion(family, effects):
    """The conclusion. It names causes only with ImageNet weights, and only effects that differ from zero."""
    if family.source != "imagenet":
        return (
            f"Not measured with ImageNet weights: these cells start from `{family.source}`, and what a scaling or a "
            "resolution does to weights that were trained otherwise says nothing about the published figures."
        )
    clear = {name: e for name, e in effects.items() if e[2] is not None and e[2].excludes_zero}
    ranked = sorted(clear.items(), key=lambda item: -abs(item[1][2].value))
    sentences = [
        f"{name} {word(low if e.value > 0 else high)} costs {abs(100 * e.value):.1f} points against "
        f"{word(high if e.value > 0 else low)}"
        for name, (low, high, e) in ranked
    ]
    first = f"With ImageNet weights, {'; '.join(sentences)}." if sentences else "No main effect can be told from zero."
    return " ".join((first, *_reproduced(family)))


def _reproduced(family):
    """Whose intervals contain each published figure."""
    for variant in family.experiment.variants:
        if (published := family.published(variant)) is None:
            continue
        estimates = {name: group.estimate for name, group in family.groups.items()}
        holding = [name for name, e in estimates.items() if e.low <= published <= e.high]
        yield (
            f"The published {published:.2f} ({variant}; here {percent(estimates[variant].value)}) lies in the "
            f"interval of {', '.join(holding) or 'no cell'}."
        )


def draw(family, path):
    """Draws the accuracy of every cell: one panel per level of the first factor, one line per level of the second."""
    (panel_by, line_by, x_by), levels = factors(family.experiment)
    cells = {levels[variant]: group for variant, group in family.groups.items()}
    panels_of, lines_of, xs = (list(dict.fromkeys(key[place] for key in levels.values())) for place in range(3))
    with figure_of(path, family.title, size=(9, 4.2)) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(panels_of), sharey=True))
        for panel, level in zip(panels, panels_of, strict=True):
            for line, colour, marker in zip(lines_of, (BLUE, ORANGE, GREEN), "os^", strict=False):
                shown = [(place, cells[level, line, x]) for place, x in enumerate(xs) if (level, line, x) in cells]
                counts = sorted({group.test_n for _, group in shown})
                label = f"{line_by} {word(line)} (n = {', '.join(f'{n:,}' for n in counts)})"
                with_intervals(panel, shown, colour, marker, label)
            panel.set_xticks(range(len(xs)), [word(x) for x in xs])
            panel.set(title=f"{word(panel_by)}: {word(level)}", xlabel=word(x_by), xlim=(-0.4, len(xs) - 0.6))
            without_frame(panel, "y")
        panels[0].set_ylabel("test accuracy")
        shares(panels[0].yaxis)
        panels[-1].legend(frameon=False, fontsize=8)
