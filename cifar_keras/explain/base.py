"""What a section is, and how it is stored: figures as PNG and SVG, numbers and tables as JSON."""

from dataclasses import dataclass, field

import numpy as np
import seaborn
from matplotlib.figure import Figure

from cifar_keras.plotting import DPI, drawing, lines, short, titled
from cifar_keras.utils.files import replacing, write_json

PALETTE = seaborn.color_palette("colorblind")
DATE = {"Date": None}


class NotApplicable(Exception):
    """This model or these runs can't have a section; the message gives the reason, for people."""


@dataclass(frozen=True)
class Section:
    """One part of an analysis.

    Attributes:
        name: of its files: 'errors'.
        title: for people.
        figures: `matplotlib.figure.Figure` by name.
        descriptions: alternative texts of the figures, one sentence each, by name.
        numbers: JSON-able figures by name.
        tables: lists of dicts heading -> number or text, by title.
        sentences: what the numbers mean.
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
                    options = {"metadata": DATE, "transparent": True} if form == "svg" else {"dpi": DPI}
                    with replacing(folder / f"{self.name}_{name}.{form}") as temporary:
                        figure.savefig(temporary, format=form, **options)
        facts = {
            "name": self.name, "title": self.title, "figures": self.descriptions, "numbers": self.numbers,
            "tables": self.tables, "sentences": list(self.sentences),
        }  # fmt: skip
        write_json(folder / f"{self.name}.json", facts)
        return folder / f"{self.name}.json"


def checked(labels, probabilities, class_names):
    """Labels int `(n,)` and probabilities float64 `(n, classes)` as arrays.

    Raises: ValueError where they do not match, or there is no image.
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


def gallery(images, captions, title, *, columns=4):
    """Pictures in a grid, each with up to three lines below it; four columns can be read on a phone.

    Args:
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255], at least one.
        captions: lines of each picture; long ones are broken or shortened.
        title: of the figure.
        columns: pictures in a row.
    """
    rows = -(-len(images) // columns)
    figure = titled(title, size=(1.4 * columns, 0.5 + 1.8 * rows))
    for panel, place in zip(figure.subplots(rows, columns, squeeze=False).flat, range(rows * columns), strict=True):
        panel.axis("off")
        if place < len(images):
            panel.imshow(images[place], interpolation="nearest")
            text = "\n".join(lines(line, 22) for line in captions[place])
            panel.text(0.5, -0.04, text, transform=panel.transAxes, ha="center", va="top", fontsize=8)
    return figure


def spread(indices, labels, count):
    """Up to `count` of some images, with the classes taking turns: the first ones might all show one class.

    Args:
        indices: int `(m,)`, of images, in order of preference.
        labels: int `(n,)`, of all images.
        count: how many.
    """
    own = np.asarray(labels)[indices]
    order = np.argsort(own, kind="stable")
    turn = np.empty(len(own), int)
    turn[order] = np.arange(len(own)) - np.searchsorted(own[order], own[order])
    return indices[np.lexsort((own, turn))][:count]


def named(names, width=22):
    """Class names that fit on an axis or in a legend. A legend leaves out names that begin with an underscore."""
    return [short(name, width) if not name.startswith("_") else f" {short(name, width)}" for name in names]
