"""What a section is, and how it is kept: figures as PNG and SVG, numbers and tables as JSON."""

import contextlib
import functools
import textwrap
import warnings
from dataclasses import dataclass, field

import matplotlib
import numpy as np
import seaborn
from matplotlib.figure import Figure

from cifar_keras.plotting import lines, short
from cifar_keras.utils.files import replacing, write_json

COLOURS = seaborn.color_palette("colorblind")
STYLE = {  # class names are shown as they are, and equal figures are equal files
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "cifar_keras",
    "axes.formatter.limits": (-4, 6),
}
DATE = {"Date": None}


class NotApplicable(Exception):
    """A section that this model or these runs can't have; the message says why, for people."""


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
        with drawing():
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


@contextlib.contextmanager
def drawing():
    """Around making and saving a figure: some settings are read when a text is made, others when it is saved."""
    with warnings.catch_warnings(), matplotlib.rc_context(STYLE):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def drawn(function):
    """A function that makes figures, under `drawing`."""

    @functools.wraps(function)
    def inside(*arguments, **named):
        with drawing():
            return function(*arguments, **named)

    return inside


def checked(labels, probabilities, class_names):
    """Labels int `(n,)` and probabilities float64 `(n, classes)` as arrays.

    Raises: ValueError where they do not go together, or there is no image.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, "float64")
    classes = probabilities.shape[-1] if class_names is None else len(class_names)
    if not len(labels) or probabilities.shape != (len(labels), classes):
        raise ValueError(
            f"`probabilities` must be (images, classes) of one image or more, here ({len(labels)}, {classes}). "
            f"Received: {probabilities.shape}."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"`labels` must be 0 to {classes - 1}. Received: {labels.min()} to {labels.max()}.")
    return labels, probabilities


def figure_of(title, *, size):
    """An empty figure with its title."""
    figure = Figure(figsize=size, layout="constrained")
    points = max(10, size[0])
    figure.suptitle(textwrap.fill(title, int(size[0] * 115 / points)), fontsize=points)
    return figure


def shares(axis):
    """Shows an axis in percent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def gallery(images, captions, title, *, columns=4):
    """Pictures in a grid, each with up to three lines below it; four columns can be read on a phone.

    Args:
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255], at least one.
        captions: texts each, one a line; long ones are broken or shortened.
        title: of the figure.
        columns: pictures in a row.
    """
    rows = -(-len(images) // columns)
    figure = figure_of(title, size=(1.4 * columns, 0.5 + 1.8 * rows))
    for panel, place in zip(figure.subplots(rows, columns, squeeze=False).flat, range(rows * columns), strict=True):
        panel.axis("off")
        if place < len(images):
            panel.imshow(images[place], interpolation="nearest")
            text = "\n".join(lines(line, 22) for line in captions[place])
            panel.text(0.5, -0.04, text, transform=panel.transAxes, ha="center", va="top", fontsize=8)
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
    """Class names that fit on an axis or in a legend, which passes over names that begin with an underscore."""
    return [short(name, width) if not name.startswith("_") else f" {short(name, width)}" for name in names]
