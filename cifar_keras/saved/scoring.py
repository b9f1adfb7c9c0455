"""Scoring saved models: the labelled images of a dataset at each model's size, and what the models make of them."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_keras import metrics
from cifar_keras.config import ConfigError, Limits
from cifar_keras.data import NAMES, shapes
from cifar_keras.data import load as load_dataset
from cifar_keras.data.base import at_most
from cifar_keras.saved import inference, labels, scaling
from cifar_keras.utils.text import to_stderr


@dataclass(frozen=True)
class Asked:
    """What models are evaluated on, as the command line states it.

    Attributes:
        dataset: a name or a folder; None for the dataset that the first model was trained on.
        data_dir, classes, skip_unreadable: as for `data.load`.
        split: 'test', 'val' or 'train'.
        limit: the most images of the split; every class keeps its share.
        image_size: side for models that take any; None for the dataset's.
        scaling: as for `inference.load`, for models that do not state theirs.
        class_names: the same; of several models, for those that name none.
        augmented: whether accuracy under test-time augmentation is wanted too.
    """

    dataset: str | None = None
    data_dir: str | None = None
    classes: str | None = None
    split: str = "test"
    limit: int | None = None
    image_size: int | None = None
    scaling: str | None = None
    class_names: str | None = None
    augmented: bool = False
    skip_unreadable: bool = False


class Images:
    """A dataset, read once at each size that a model takes.

    Attributes:
        name: as `--dataset`.
        data: `Dataset` at its own size.

    Raises: ConfigError as `data.load`, and for a split without images.
    """

    def __init__(self, name, asked):
        limits = Limits(asked.limit, asked.limit, asked.limit)
        shared = {"data_dir": asked.data_dir, "classes": asked.classes, "skip_unreadable": asked.skip_unreadable}
        self.name = name
        self._read = functools.cache(functools.partial(load_dataset, name, limits=limits, **shared))
        self.data = self._read()
        if not len(getattr(self.data, asked.split)):
            raise ConfigError(f"The {asked.split} split of {self.data.label} must hold images. Received: none.")
        for note in self.data.notes:
            to_stderr(f"{self.data.label}: {note}")
        if asked.split in self.data.carved:
            to_stderr(
                f"{self.data.label} has no {asked.split} split of its own: a tenth of its images, always the same "
                "ones, is used. `predict --labels-from-folders` uses all of them"
            )

    @property
    def side(self):
        """The shorter side of the images, in pixels."""
        return min(self.data.image_shape[:2])

    def of(self, classifier):
        """The dataset for a classifier. CIFAR's images keep their size, and are resized one by one.

        Generated images are made at the classifier's size, and a folder's files are decoded at it, as by `predict`.
        """
        height, width = classifier.size
        if self.name in shapes.GENERATED and height == width and 8 <= height <= 1024:
            return self._read(image_size=height)
        return self.data if self.name in NAMES else self._read(decoded_at=(height, width))


def own_dataset(classifier: inference.Classifier) -> str:
    """The name of the dataset that a model was trained on. Raises ConfigError where it has none."""
    file, name = classifier.network.path.name, classifier.provenance.get("config", {}).get("dataset")
    if name not in NAMES:
        known = f"{file} was trained on the folder {name}" if name else f"{file} does not state its training images"
        raise ConfigError(
            f"`--dataset` must name the images: {', '.join(NAMES)}, or a folder of them. Received: none; {known}."
        )
    to_stderr(f"dataset: {name}, which {file} was trained on")
    return name


@dataclass(frozen=True)
class Score:
    """What a model makes of the images.

    Attributes:
        model: its name on the command line.
        name: its name in tables, unlike any other's.
        path: of its file.
        run_id: of the run that it came from; None for a model from elsewhere.
        scaling: of its pixels.
        probabilities: float32 `(n, classes + others)`: the dataset's classes in their order, then the model's others.
        others: the names of these.
        notes: what was assumed.
        augmented: accuracy under test-time augmentation; None where it was not asked for.
        footprint: of `commands.footprint.measured`; None where it was not asked for.
    """

    model: str
    name: str
    path: Path
    run_id: str | None
    scaling: str
    probabilities: np.ndarray
    others: tuple[str, ...]
    notes: tuple[str, ...]
    augmented: float | None = None
    footprint: dict[str, float | None] | None = None


def score(model: str, name: str, classifier: inference.Classifier, images: Images, asked: Asked) -> Score:
    """The `Score` of a classifier on `Images`; its notes are also printed.

    Raises: ConfigError where its outputs can't be the dataset's classes, or it turns out to be damaged.
    """
    data, notes = images.of(classifier), []
    split = getattr(data, asked.split)

    def note(*texts):
        for text in filter(None, texts):
            notes.append(f"{name}: {text}")
            to_stderr(notes[-1])

    order = labels.order_of(classifier, data.class_names)
    note(*classifier.assumptions, order.note, _seen_in_training(classifier, data, asked.split))
    if not classifier.states_scaling and asked.scaling is None:
        classifier, sentence = _with_best_scaling(classifier, data, order, asked.split)
        note(sentence)
    found = probabilities(classifier, split.images, what=name)[:, order.outputs]
    if order.assumed:
        note(labels.other_order(metrics.confusion(split.labels, found), data.class_names))
    augmented = None
    if asked.augmented:
        views = inference.augmented_probabilities(classifier, split.images, by=probabilities, what=f"{name}, a view")
        augmented = metrics.accuracy(split.labels, views[:, order.outputs])
    path, run_id = classifier.network.path, classifier.provenance.get("run_id")
    return Score(model, name, path, run_id, classifier.scaling, found, order.others, tuple(notes), augmented)


def probabilities(classifier: inference.Classifier, images: Any, *, what: str) -> np.ndarray:
    """Class probabilities of a split's images of any size, float32 `(n, outputs)`; arguments as for `in_blocks`."""
    return inference.in_blocks(classifier.probabilities, inference.at_size(images, classifier), what=what)


def _seen_in_training(classifier, data, split):
    """A sentence where a split of these images served for training the model, else None."""
    if split == "test" or classifier.provenance.get("config", {}).get("fingerprint") != data.fingerprint:
        return None
    use = {"train": "it was trained on this split", "val": "its epoch was selected on this split"}[split]
    return f"{use}, so the accuracy is too high for new images"


def _with_best_scaling(classifier, data, order, split):
    """The classifier with the scaling that fits best on a split that is not evaluated, and a sentence on it."""
    name = "train" if split == "val" else "val"
    some = at_most(getattr(data, name), scaling.TRIED)

    def outcomes(one):
        found = probabilities(one, some.images, what=one.scaling)[:, order.outputs]
        return np.asarray(some.labels), found.argmax(axis=1)

    classifier, sentence = scaling.best(classifier, outcomes, classes=len(data.class_names))
    return classifier, f"on {name} images: {sentence}"
