"""What every figure shares, and the pictures of a run. No pyplot, so no state between calls."""

import contextlib
import textwrap
import warnings

import matplotlib
import numpy as np
import seaborn
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cifar_keras.utils.files import replacing
from cifar_keras.utils.text import printable

DPI = 120
BLUE, ORANGE, GREEN = seaborn.color_palette("colorblind", 3)
GREY = "0.45"
FEW = 20  # classes, up to which every class gets its own column of samples and every cell its count
STYLE = {  # class names are shown as they are, and equal figures are equal files
    "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "cifar_keras",
    "axes.formatter.limits": (-4, 6),
}  # fmt: skip
ON_CURVES = (
    "The training curve is the running metric: augmented images, weights that move during the epoch, dropout where "
    "used.",
    "Validation is measured after each epoch, on plain images. Both losses include label smoothing where the recipe "
    "has it.",
)
NAMED = 120  # classes: beyond, pictures stop growing and show every k-th name


def sample_grid(images, labels, class_names, path, *, title):
    """Draws the first six images of each class in columns, or a plain grid of 60 for more than 20 classes.

    Args:
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255]; an array or `data.base.Rows`.
        labels: int `(n,)`, indices into `class_names`.
        class_names: one per class.
        path: where the PNG goes.
        title: dataset label, experiment, n.
    Raises: ValueError if there is no image.
    """
    labels = np.asarray(labels)
    if not len(labels):
        raise ValueError("`images` must hold at least one image. Received: none.")
    by_class = len(class_names) <= FEW
    cells = _first_of_each_class(labels, len(class_names), rows=6) if by_class else _spread(labels, rows=6, columns=10)
    columns = cells.shape[1]
    below = 0.0 if by_class else 0.3  # of a cell, for its label
    with figure_of(path, title, size=(max(7.0, 1.05 * columns), 0.9 + (1 + below) * cells.shape[0])) as figure:
        axes = figure.add_subplot()
        axes.axis("off")
        axes.set(xlim=(0, columns), ylim=(cells.shape[0] * (1 + below), 0), aspect="equal")
        for row, column in np.argwhere(cells >= 0):
            index, top = cells[row, column], row * (1 + below)
            axes.imshow(images[int(index)], extent=_box(images.shape[1:3], column, top), interpolation="nearest")
            if not by_class:
                _caption(axes, class_names[labels[index]], column, top + 1.0)
        axes.set(xlim=(0, columns), ylim=(cells.shape[0] * (1 + below), 0))  # imshow moved them
        for column, name in enumerate(class_names if by_class else ()):
            _caption(axes, name, column, -0.03, va="bottom")


def rows_of_images(rows, path, *, title):
    """Draws named rows of images, one below the other.

    Args:
        rows: `{name: uint8 (n, height, width, 3)}`, of equal shapes, RGB in [0, 255].
        path: where the PNG goes.
        title: of the figure.
    """
    count = len(next(iter(rows.values())))
    with figure_of(path, title, size=(2.4 + 0.75 * count, 0.6 + 0.75 * len(rows))) as figure:
        axes = figure.add_subplot()
        for row, images in enumerate(rows.values()):
            for column, image in enumerate(images):
                axes.imshow(image, extent=_box(image.shape[:2], column, row), interpolation="nearest")
        axes.set(xlim=(0, count), ylim=(len(rows), 0), aspect="equal", xticks=[])
        axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


def _box(shape, left, top):
    """Where an image of this `(height, width)` goes in the cell at `(left, top)`: `(left, right, bottom, top)`."""
    high, wide = (0.47 * side / max(shape) for side in shape)
    return left + 0.5 - wide, left + 0.5 + wide, top + 0.5 + high, top + 0.5 - high


def _first_of_each_class(labels, classes, *, rows):
    """Indices `(rows, classes)` of the first images of each class; -1 where a class has fewer."""
    cells = np.full((rows, classes), -1)
    for label in range(classes):
        found = np.flatnonzero(labels == label)[:rows]
        cells[: len(found), label] = found
    return cells[(cells >= 0).any(axis=1)]


def _spread(labels, *, rows, columns):
    """Indices `(rows, columns)` of images of as many different classes as fit, by class; -1 where there are fewer."""
    classes = np.unique(labels)
    chosen = classes[np.linspace(0, len(classes) - 1, min(len(classes), rows * columns)).astype(int)]
    cells = np.full(rows * columns, -1)
    cells[: len(chosen)] = [np.argmax(labels == label) for label in chosen]
    return cells.reshape(rows, columns)


def _caption(axes, name, column, y, *, va="top"):
    """A class name of at most two lines in the width of one cell."""
    axes.text(column + 0.5, y, lines(name, 13), ha="center", va=va, fontsize=7.5, linespacing=0.95)


def label_distribution(labels_by_split, class_names, path, *, title):
    """Draws how many images of each class each split has: one panel per split, one bar per class.

    Args:
        labels_by_split: split name -> int `(n,)`, indices into `class_names`.
        class_names: one per class.
        path: where the PNG goes.
        title: dataset label, experiment, n.
    """
    classes = len(class_names)
    positions = np.arange(classes)
    height = 1.6 + (0.3 * classes if classes <= FEW else 0.15 * min(classes, NAMED))
    with figure_of(path, title, size=(10, height)) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(labels_by_split), sharey=True))
        for panel, (split, labels), colour in zip(
            panels, labels_by_split.items(), seaborn.color_palette("colorblind", len(panels)), strict=True
        ):
            counts = np.bincount(np.asarray(labels, dtype=int), minlength=classes)
            bars = panel.barh(positions, counts, color=colour, height=0.75)
            if classes <= NAMED:
                panel.bar_label(bars, fontsize=8 if classes <= FEW else 6, padding=2)
            panel.set(xlim=(0, 1.2 * max(1, counts.max())), xlabel="images")
            least, most = f"{counts.min():,}", f"{counts.max():,}"
            between = least if least == most else f"{least} to {most}"
            panel.set_title(f"{split}, n = {counts.sum():,}, {between} a class", fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            without_frame(panel, "x")
        panels[0].set_ylim(classes - 0.4, -0.6)
        _name_ticks(panels[0].yaxis, class_names)


def training_curves(history, path, *, title, best_epoch):
    """Draws loss and accuracy by epoch, training beside validation, with the best epoch and the stages marked.

    Args:
        history: lists of equal length under 'epoch', 'loss', 'accuracy', 'val_loss', 'val_accuracy', 'stage'.
        path: where the PNG goes.
        title: dataset label, experiment, n.
        best_epoch: the value of `history['epoch']` whose weights were kept; None marks none.
    """
    with figure_of(path, title, size=(10, 4.3)) as figure:
        curves_on(figure, history, best_epoch)
        figure.supxlabel("\n".join(ON_CURVES), fontsize=7.5, color=GREY)


def curves_on(figure, history, best_epoch):
    """Both panels of `training_curves` on a figure; arguments as it has them."""
    for panel, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _curve(panel, history, metric, best_epoch)
        _mark_stages(panel, history)
        epochs = history["epoch"]
        panel.set(xlabel="epoch", ylabel=metric, xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        without_frame(panel, "both")
        panel.legend(fontsize=8, frameon=False)


def _curve(panel, history, metric, best_epoch):
    """Both curves of one metric and the best epoch; single epochs stay visible through their markers."""
    epochs = history["epoch"]
    style = {"marker": "o", "markersize": 3.5 if len(epochs) <= 40 else 0, "linewidth": 1.6}
    for key, label, colour, line in ((metric, "train (running)", BLUE, "--"), (f"val_{metric}", "val", ORANGE, "-")):
        values = [np.nan if value is None else value for value in history[key]]
        panel.plot(epochs, values, line, color=colour, label=label, **style)
    if best_epoch in epochs:
        value = values[epochs.index(best_epoch)]  # of val, the last one drawn
        shown = f"{value:.1%}" if metric == "accuracy" else f"{value:.3g}"
        label = f"kept: epoch {best_epoch}, val {shown}"
        panel.plot(best_epoch, value, "*", color=GREEN, markersize=13, markeredgecolor="white", label=label)
    if metric == "accuracy":
        shares(panel.yaxis)


def _mark_stages(panel, history):
    """A dotted line before the first epoch of each later stage, with the stage's number (from 1, in order)."""
    stages = history.get("stage", [])
    starts = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
    for number, index in enumerate(starts, start=2):
        middle = (history["epoch"][index - 1] + history["epoch"][index]) / 2
        panel.axvline(middle, color=GREY, linestyle=":", linewidth=1)
        at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "xytext": (3, 0)}
        panel.annotate(f"stage {number}", (middle, 1.01), fontsize=7.5, color=GREY, **at)


def confusion_matrix(matrix, class_names, path, *, title):
    """Draws a confusion matrix: shade is the share of the true class, text (<= 20 classes) the count.

    A class without images has an empty row.

    Args:
        matrix: int `(classes, classes)`, rows true, columns predicted.
        class_names: one per class.
        path: where the PNG goes.
        title: dataset label, experiment, n.
    """
    matrix = np.asarray(matrix)
    side = max(5.5, 2.5 + 0.52 * len(matrix)) if len(matrix) <= FEW else 3 + 0.125 * min(len(matrix), NAMED)
    with figure_of(path, title, size=(1.14 * side, side)) as figure:
        axes = figure.add_subplot()
        bar = confusion_on(axes, row_shares(matrix), np.where(matrix > 0, matrix, ""), class_names)
        bar.set_label("share of the true class (square-root scale)")
        shares(bar.ax.yaxis)


def row_shares(matrix):
    """A matrix of counts with each row divided by its sum; an empty row stays zero."""
    totals = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)


def confusion_on(axes, values, texts, class_names, *, top=1.0):
    """Draws a confusion matrix, rows true: `values` in [0, `top`] as colours, `texts` in cells of up to 20 classes.

    Returns: the colour bar.
    """
    few = len(class_names) <= FEW
    seaborn.heatmap(
        values, ax=axes, cmap="Blues", square=True, linewidths=0.5 if few else 0, cbar_kws={"shrink": 0.7},
        norm=PowerNorm(0.5, 0, top),  # a square root: rare confusions stay visible beside the diagonal
        annot=texts if few else None, fmt="", annot_kws={"fontsize": 8 if np.char.str_len(texts).max() < 5 else 6.5},
    )  # fmt: skip
    axes.set(xlabel="predicted", ylabel="true")
    for axis in (axes.xaxis, axes.yaxis):
        _name_ticks(axis, class_names, offset=0.5)
    axes.tick_params(axis="x", rotation=90, length=2)
    axes.tick_params(axis="y", rotation=0, length=2)
    return axes.collections[0].colorbar


@contextlib.contextmanager
def drawing():
    """Around making and saving a figure: some settings are read when a text is made, others when it is saved.

    Class names are shown as they are: a dollar sign starts no formula, and a glyph that the font lacks is a box.
    """
    with warnings.catch_warnings(), matplotlib.rc_context(STYLE):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


drawn = drawing()  # decorates functions that make figures


@contextlib.contextmanager
def figure_of(path, title, *, size):
    """Yields a `Figure` with its title and saves it to `path`, whole or not at all."""
    with drawing():
        figure = titled(title, size=size, points=max(11, size[0] * 0.9))
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")


def titled(title, *, size, points=None):
    """An empty figure with its title, in a font of this many points; None for one that grows with the figure."""
    points = points or max(10, size[0])
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.fill(title, int(size[0] * 115 / points)), fontsize=points)
    return figure


def shares(axis):
    """Shows an axis in percent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def logarithmic(panel, low, high):
    """Makes a panel's x axis logarithmic from `low` to `high`, with plain numbers: formulas are off, see `STYLE`."""
    panel.set(xscale="log", xlim=(low, high))
    axis = panel.xaxis
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def without_frame(panel, grid):
    """Removes the box around a panel and draws a pale grid ('x', 'y' or 'both') behind the data."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis=grid, color=GREY, alpha=0.25, linewidth=0.7)
    panel.set_axisbelow(True)


def _name_ticks(axis, names, *, offset=0.0):
    """One tick per class with its name; every k-th where there are more than `NAMED`."""
    shown = range(0, len(names), -(-len(names) // NAMED))
    size = 9 if len(names) <= FEW else 6.5
    axis.set_ticks([i + offset for i in shown], [short(names[i], 28) for i in shown], fontsize=size)


def short(name, width):
    """The name with its middle left out where it is longer than `width`: both ends tell classes apart."""
    name = " ".join(printable(name).split())  # names of folders may hold anything
    if len(name) <= width:
        return name
    half = (width - 1) // 2
    return f"{name[: width - 1 - half]}…{name[-half:]}"


def lines(name, width):
    """The name on at most two lines of `width` characters, broken at blanks, `_`, `-` or `/` where it has them."""
    name = short(name, 2 * width)
    if len(name) <= width:
        return name
    breaks = [i + 1 for i, character in enumerate(name) if character in " _-/" and len(name) - width <= i + 1 <= width]
    middle = min(breaks, key=lambda i: abs(i - len(name) / 2), default=len(name) // 2)
    return f"{name[:middle].strip()}\n{name[middle:].strip()}"
