"""What a section is, and how it is kept: figures as PNG and SVG, numbers and tables as JSON."""

import textwrap
from dataclasses import dataclass, field

import matplotlib
import numpy as np
import seaborn
from matplotlib.figure import Figure

from cifar_keras.files import replacing, write_json

COLOURS = seaborn.color_palette("colorblind")
GREY = "0.45"
FEW = 20  # classes: up to here each gets its name and its own colour
STYLE = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "cifar_keras",
    "axes.formatter.limits": (-4, 6),
}
DATE = {"Date": None}  # equal figures are equal files


@dataclass(frozen=True)
class Section:
    """One part of an analysis.

    Attributes:
        name: of its files: 'errors'.
        title: for people.
        figures: `matplotlib.figure.Figure` by name.
        descriptions: what each figure shows, in a sentence, by its name: the alternative text.
        numbers: JSON-able figures by name.
        tables: lists of dicts heading -> number or text, by title.
        sentences: what the numbers say.
    """

    name: str
    title: str
    figures: dict[str, Figure]
    descriptions: dict[str, str]
    numbers: dict
    tables: dict[str, list[dict]] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()

    def save(self, folder):
        """Writes `<name>_<figure>.png` and `.svg`, then `<name>.json`, each whole; returns the JSON's path."""
        with matplotlib.rc_context(STYLE):
            for name, figure in self.figures.items():
                for form in ("png", "svg"):
                    options = {"metadata": DATE, "transparent": True} if form == "svg" else {"dpi": 120}
                    with replacing(folder / f"{self.name}_{name}.{form}") as temporary:
                        figure.savefig(temporary, format=form, **options)
        facts = {
            "name": self.name, "title": self.title, "figures": self.descriptions, "numbers": self.numbers,
            "tables": self.tables, "sentences": list(self.sentences),
        }  # fmt: skip
        write_json(folder / f"{self.name}.json", facts)
        return folder / f"{self.name}.json"


def figure_of(title, *, size):
    """An empty figure with its title."""
    figure = Figure(figsize=size, layout="constrained")
    points = max(10, size[0])
    figure.suptitle(textwrap.fill(title, int(size[0] * 115 / points)), fontsize=points)
    return figure


def bare(panel, grid="both"):
    """Takes away the box around a panel and draws a grid behind the data that is pale on white and on black."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis=grid, color=GREY, alpha=0.25, linewidth=0.7)
    panel.set_axisbelow(True)


def shares(axis):
    """Shows an axis in percent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def gallery(images, captions, title, *, columns=4):
    """Pictures in a grid, each with up to three lines below it; four columns can be read on a phone.

    Args:
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255], at least one.
        captions: text each, lines separated by newlines.
        title: of the figure.
        columns: pictures in a row.
    """
    rows = -(-len(images) // columns)
    figure = figure_of(title, size=(1.4 * columns, 0.5 + 1.8 * rows))
    for panel, place in zip(figure.subplots(rows, columns, squeeze=False).flat, range(rows * columns), strict=True):
        panel.axis("off")
        if place < len(images):
            panel.imshow(images[place], interpolation="nearest")
            panel.text(0.5, -0.04, captions[place], transform=panel.transAxes, ha="center", va="top", fontsize=8)
    return figure


def spread(indices, labels, count):
    """Up to `count` of some images, the classes taking turns: a gallery of the first would show one class.

    Args:
        indices: int `(m,)`, of images, in the order of preference.
        labels: int `(n,)`, of all images.
        count: how many.
    """
    own = np.asarray(labels)[indices]
    order = np.argsort(own, kind="stable")
    turn = np.empty(len(own), int)
    turn[order] = np.arange(len(own)) - np.searchsorted(own[order], own[order])
    return indices[np.lexsort((own, turn))][:count]


def named(names, width=22):
    """Class names that fit on an axis, their middles left out where they are longer than `width`."""
    half = (width - 1) // 2
    return [name if len(name) <= width else f"{name[: width - 1 - half]}…{name[-half:]}" for name in names]
