"""Predicting with a saved model: `load(path).predict(images)` for any file, `probabilities` for a dataset's images."""

import dataclasses
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from cifar_keras import blocks, foreign
from cifar_keras.config import ConfigError
from cifar_keras.datasets.base import Split
from cifar_keras.formats import Network, open_network
from cifar_keras.images import decode, fitted
from cifar_keras.pipeline import evaluation_pipeline

BATCH = 64  # images at a time
SCALINGS = ("raw", "unit", "half", "zscore", "torch", "caffe")  # none, and those of the zoo's models

VIEWS = (
    # arXiv:2404.00498, section 3.5: mirrored or not, each at rest and one pixel up-left and down-right
    (0, False, 0.25), (0, True, 0.25), (-1, False, 0.125), (-1, True, 0.125), (1, False, 0.125), (1, True, 0.125),
)  # fmt: skip


def probabilities(model, images, *, batch_size):
    """Class probabilities of images, streamed in batches.

    Args:
        model: a saved model (`artifacts.load`), or any that returns probabilities.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255]; an array or a memory map.
        batch_size: images at a time.
    Returns: float32 `(n, classes)`.
    """
    split = Split(images, np.zeros(len(images), "int32"))
    return model.predict(evaluation_pipeline(split, batch_size=batch_size), verbose=0)


def augmented_probabilities(model, images, *, batch_size):
    """The weighted mean of the probabilities of six views of each image. Arguments and result as `probabilities`."""
    views = ((Moved(images, move, mirrored), weight) for move, mirrored, weight in VIEWS)
    return sum(weight * probabilities(model, view, batch_size=batch_size) for view, weight in views)


class Moved:
    """Images moved by up to a pixel along the diagonal, borders reflected, and mirrored or not; made when indexed.

    Args:
        images: uint8 `(n, height, width, 3)`; an array or a memory map.
        move: -1, 0 or 1 pixels down and to the right that the view begins.
        mirrored: left to right.
    """

    def __init__(self, images, move, mirrored):
        self.images, self.move, self.mirrored = images, move, mirrored
        self.shape, self.dtype = images.shape, images.dtype

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        """`key` is an array of indices."""
        padded = np.pad(np.asarray(self.images[key]), ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        first, (height, width) = 1 + self.move, self.shape[1:3]
        view = padded[:, first : first + height, first : first + width]
        return view[:, :, ::-1] if self.mirrored else view


def load(path, *, scaling=None, image_size=None, default_size=None):
    """Loads any saved model for prediction; no code stored in a file is run.

    Args:
        path: a `.keras`, a complete `.h5` (of Keras 2 or 3), a `_custom.h5` beside its `_architecture.json`, an `.onnx`
            or a `.tflite`.
        scaling: of `SCALINGS`; what a model from elsewhere wants its pixels to be. Default 'raw', RGB in [0, 255].
            Models of this project scale by themselves.
        image_size: side of the images, for a model that takes any.
        default_size: the same, where `image_size` is not given; ignored by a model that takes one size.
    Returns: `Classifier`.
    Raises: ConfigError where the file is damaged, holds more than stock layers, is no classifier of RGB images, or does
        not go with the other arguments.
    """
    network = open_network(path)
    note = network.provenance or {}
    side = image_size or default_size
    if (size := network.size or side and (side, side)) is None:
        raise ConfigError(f"`--image-size` must be given, as {path} takes images of any size. Received: none.")
    if image_size not in (None, *size):
        raise ConfigError(f"`--image-size` must be the model's, {size[0]} x {size[1]}. Received: {image_size}.")
    if "contract" in note and scaling is not None:
        raise ConfigError(
            f"`--input-scaling` is for models from elsewhere; {path} scales by itself. Received: {scaling}."
        )
    names = note.get("class_names") or [f"class {number}" for number in range(network.outputs)]
    if len(names) != network.outputs:
        raise ConfigError(f"{path} must name its {network.outputs} classes. Received: {len(names)} names.")
    if network.model and not network.size:
        foreign.check_outputs(network.model, size)
    classifier = Classifier(network, tuple(names), note, size, logits=False).scaled(scaling or "raw")
    return dataclasses.replace(classifier, logits="contract" not in note and classifier._puts_out_logits())


@dataclass(frozen=True)
class Classifier:
    """A saved model, whatever its format, that takes images, whatever theirs.

    Attributes:
        network: the opened file.
        class_names: one a class, 'class 0' and so on where the file names none.
        provenance: what the file says of itself: run id, class names, configuration; empty for one from elsewhere.
        size: `(height, width)` that images are brought to.
        logits: whether a softmax is still to come.
        scaling: of `SCALINGS`, 'raw' where the model scales by itself.
        scale: takes uint8 pixels, returns what the network takes.
    """

    network: Network
    class_names: tuple[str, ...]
    provenance: dict
    size: tuple[int, int]
    logits: bool
    scaling: str = "raw"
    scale: Callable | None = None

    def predict(self, images, *, batch_size=BATCH):
        """Class probabilities of images.

        Args:
            images: paths, bytes or binary files of images, or uint8 arrays `(height, width, 3)`, RGB in [0, 255], of
                any size; also one array `(n, height, width, 3)`, or one path.
            batch_size: images at a time.
        Returns: float32 `(n, classes)`.
        Raises: images.ImageError for an image that can't be decoded; ConfigError where the model can't be run, or needs
            more than `formats.MAX_BYTES` in onnxruntime, which a smaller `batch_size` mends.
        """
        images = [images] if isinstance(images, str | bytes | os.PathLike) else images
        parts = [self.probabilities(np.stack(block)) for block in batched(map(self.pixels, images), batch_size)]
        return np.concatenate([np.empty((0, len(self.class_names)), "float32"), *parts])

    def pixels(self, image):
        """One image at the model's size, uint8 `(height, width, 3)`: shorter side resized, the centre cut out."""
        return fitted(image, self.size) if isinstance(image, np.ndarray) else decode(image, size=self.size)

    def probabilities(self, pixels):
        """Class probabilities, float32 `(n, classes)`, of uint8 images `(n, height, width, 3)` at the model's size.

        Raises: ConfigError where the model puts out NaN or infinity.
        """
        scores = np.asarray(self.network.run(self.scaled_pixels(pixels)), "float32")
        if not np.isfinite(scores).all():
            raise ConfigError(f"{self.network.path} must put out finite numbers. Received: NaN or infinity.")
        return _softmax(scores) if self.logits else scores

    def scaled_pixels(self, pixels):
        """What the network is given for uint8 images at its size."""
        return self.scale(pixels) if self.scale else pixels.astype(self.network.dtype)

    def scaled(self, scaling):
        """The same classifier with another of `SCALINGS`."""
        if scaling not in SCALINGS:
            raise ConfigError(f"`--input-scaling` must be one of {', '.join(SCALINGS)}. Received: {scaling!r}.")
        scale = None if scaling == "raw" else _scale(scaling, self.size)
        return dataclasses.replace(self, scaling=scaling, scale=scale)

    @property
    def states_scaling(self):
        """Whether the file itself says how pixels are scaled: by its contract, or by layers that do it."""
        return "contract" in self.provenance or self.network.holds_scaling

    def _puts_out_logits(self):
        """Whether the numbers for two images of noise are no probabilities."""
        noise = np.random.default_rng(0).integers(0, 256, (2, *self.size, 3), dtype="uint8")
        scores = self.probabilities(noise)
        return bool(scores.min() < 0 or np.abs(scores.sum(axis=1) - 1).max() > 1e-2)


def _scale(scaling, size):
    """`blocks.scale` as a function of uint8 arrays."""
    x = inputs = keras.Input((*size, 3), dtype="uint8")
    x = layers.Rescaling(1.0, dtype="float32")(x)
    return keras.Model(inputs, blocks.scale(x, scaling)).predict_on_batch


def _softmax(scores):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def batched(values, count):
    """Lists of up to `count` values, one after the other (`itertools.batched` of Python 3.12)."""
    values = iter(values)
    while block := list(itertools.islice(values, count)):
        yield block
