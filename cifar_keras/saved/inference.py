"""Predicting with a saved model: `load(path).predict(images)` for any file, `probabilities` for a dataset's images."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import keras
import numpy as np
from keras import layers
from scipy import special
from tqdm import tqdm

from cifar_keras.config import ConfigError
from cifar_keras.data.base import Rows, Split
from cifar_keras.data.images import Lazy, decode, fitted
from cifar_keras.data.pipeline import evaluation_pipeline
from cifar_keras.models import blocks
from cifar_keras.models.fused import fused_kernels
from cifar_keras.saved import labels, safe_loading
from cifar_keras.saved.formats import Network, open_network
from cifar_keras.utils.paths import StrPath
from cifar_keras.utils.text import shortened, to_stderr

BATCH = 64  # images at a time
SCALINGS = ("raw", "unit", "half", "zscore", "torch", "caffe")  # none, and those of the zoo's models
FOR_GREY = ("raw", "unit", "half")  # of them; the others have a figure for each of three channels
LUMA = np.array((19595, 38470, 7471), "float32")  # red, green and blue, of 65,536: ITU-R 601, rounded as Pillow does
NEAR = 0.02  # how far a range may differ from that of a scaling that it is taken for, as a share of its span
PROBABILITY, LOGIT = "probability", "logit"  # what one number for two classes may be
PROBES = 16  # images that show whether a model puts out probabilities

VIEWS = (
    # arXiv:2404.00498, section 3.5: mirrored or not, each at rest and one pixel up-left and down-right
    (0, False, 0.25), (0, True, 0.25), (-1, False, 0.125), (-1, True, 0.125), (1, False, 0.125), (1, True, 0.125),
)  # fmt: skip


def probabilities(model: keras.Model, images: Any, *, batch_size: int) -> np.ndarray:
    """Class probabilities of images, streamed in batches.

    Args:
        model: a saved model (`artifacts.load`), or any that returns probabilities.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255]; an array or a memory map.
        batch_size: images at a time.
    Returns: float32 `(n, classes)`.

    GELU layers are computed by a faster kernel, unless the model has predicted before: Keras keeps what it compiled.
    """
    split = Split(images, np.zeros(len(images), "int32"))
    with fused_kernels(model):
        return model.predict(evaluation_pipeline(split, batch_size=batch_size), verbose=0)


def augmented_probabilities(model, images, *, by=probabilities, **options):
    """The weighted mean of `by(model, images, **options)` over six views of each image."""
    return sum(weight * by(model, moved(images, move, mirrored), **options) for move, mirrored, weight in VIEWS)


def in_blocks(function, images, *, what, batch_size=BATCH):
    """What a function makes of images, block after block, with a progress bar.

    Args:
        function: takes uint8 `(n, height, width, 3)`; returns an array with n rows, or a list of such arrays.
        images: uint8 `(n, height, width, 3)`; anything that an array of indices indexes.
        what: for the progress bar.
        batch_size: images at a time.
    Returns: the array for all images, float32, or the list of them.
    """
    parts = []
    with tqdm(total=len(images), unit=" images", desc=what, disable=None, leave=False) as bar:
        for start in range(0, len(images), batch_size):
            block = np.ascontiguousarray(images[np.arange(start, min(start + batch_size, len(images)))])
            parts.append(function(block))
            bar.update(len(block))
    return keras.tree.map_structure(lambda *part: np.concatenate(part).astype("float32", copy=False), *parts)


def at_size(images, classifier):
    """A split's images at the size that a classifier takes; resized ones are made when they are read."""
    if tuple(images.shape[1:3]) == tuple(classifier.size):
        return images
    resized = Lazy(lambda indices: list(map(classifier.pixels, images[indices])), (len(images), *classifier.size, 3))
    return Rows(resized, np.arange(len(images)))


def moved(images, move, mirrored):
    """Images moved by up to a pixel along the diagonal, with reflected borders, and mirrored or not: `Lazy`.

    Args:
        images: uint8 `(n, height, width, 3)`; an array or a memory map.
        move: where the view begins: -1, 0 or 1 pixels down and to the right.
        mirrored: left to right.
    """
    first, (height, width) = 1 + move, images.shape[1:3]

    def make(indices):
        padded = np.pad(np.asarray(images[indices]), ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        view = padded[:, first : first + height, first : first + width]
        return view[:, :, ::-1] if mirrored else view

    return Lazy(make, images.shape)


def load(
    path: StrPath,
    *,
    weights: StrPath | None = None,
    scaling: str | None = None,
    image_size: int | None = None,
    default_size: int | None = None,
    class_names: str | Sequence[str] | None = None,
) -> "Classifier":
    """Loads any saved model for prediction; no code stored in a file is run.

    Args:
        path: a `.keras`, a complete `.h5` (of Keras 2 or 3), a `_custom.h5` beside its `_architecture.json`, a `.json`
            whose weights are given too, an `.onnx` or a `.tflite`.
        weights: path of the weights that belong to a `.json`.
        scaling: of `SCALINGS`; what a model from elsewhere wants its pixels to be. Default 'raw', RGB in [0, 255]; of a
            quantised input what its range says. Models of this project scale by themselves.
        image_size: side of the images, for a model that takes any.
        default_size: the same, where `image_size` is not given; ignored by a model that takes one size.
        class_names: in the order of the outputs, as for `labels.listed`; default those that the file holds.
    Returns: the model; its `assumptions` say what the file left open.
    Raises: ConfigError where the file is damaged, holds more than stock layers, is no classifier of images, or does
        not go with the other arguments.
    """
    network = open_network(path, weights)
    note = network.provenance or {}
    side = image_size or default_size
    if (size := network.size or ((side, side) if side else None)) is None:
        raise ConfigError(f"`--image-size` must be given, as {path} takes images of any size. Received: none.")
    if image_size not in (None, *size):
        raise ConfigError(f"`--image-size` must be the model's, {size[0]} x {size[1]}. Received: {image_size}.")
    if "contract" in note and scaling is not None:
        raise ConfigError(
            f"`--input-scaling` is for models from elsewhere; {path} scales by itself. Received: {scaling}."
        )
    names, note, assumed = named(network, class_names)
    if network.model and not network.size:
        safe_loading.check_outputs(network.model, size)
    classifier = Classifier(network, names, note, size, logits=False)
    classifier, of_pixels = _pixels_known(classifier, scaling)
    classifier, of_outputs = _outputs_known(classifier)
    return dataclasses.replace(classifier, assumptions=(*assumed, *of_pixels, *of_outputs))


def named(network, class_names=None):
    """The names of a network's classes; `class_names` as for `load`.

    Returns: `(names, provenance, assumptions)`. Where the names are known, the provenance holds them as `class_names`;
        else they are 'class 0' and so on.
    Raises: ConfigError unless there is one name per class.
    """
    count = max(network.outputs, 2)
    numbered = tuple(f"class {number}" for number in range(count))
    note = dict(network.provenance or {})
    own = tuple(note.pop("class_names", ()))
    if own and len(own) != count:
        raise ConfigError(f"{network.path} must name its {count} classes. Received: {len(own)} names.")
    own = () if own == numbered else own  # which is what an export without names may say
    if class_names is None:
        return own or numbered, note | ({"class_names": list(own)} if own else {}), ()
    if len(given := labels.listed(class_names)) != count:
        raise ConfigError(
            f"`--class-names` must name the {count} classes of {network.path.name} in the order of its outputs. "
            f"Received: {len(given)} names."
        )
    differs = own and own != given
    assumed = (f"names its classes {shortened(own)}; --class-names calls them {shortened(given)}",) if differs else ()
    return given, note | {"class_names": list(given)}, assumed


def print_assumptions(classifier):
    """Prints what was assumed where the model's file left it open, one line each, on standard error."""
    for assumed in classifier.assumptions:
        to_stderr(f"{classifier.network.path.name} {assumed}")


def print_unstated_scaling(classifier, *, or_else=""):
    """Prints on standard error that the scaling of a model's pixels is unknown, and how to state it."""
    to_stderr(
        f"{classifier.network.path.name} does not state how its pixels are scaled. They are given as they are, in "
        f"[0, 255]. If that is wrong: --input-scaling {'|'.join(classifier.scalings)}{or_else}."
    )


def _pixels_known(classifier, scaling):
    """The classifier with its scaling, and what was assumed about its pixels."""
    network, assumed = classifier.network, []
    if network.channels == 1:
        assumed.append("takes grey images; RGB becomes grey by ITU-R 601 luma, as Pillow's mode L")
    if network.quantised and scaling is None and "contract" not in classifier.provenance:
        low, high = network.quantised.ends
        known = scaling_of_range(low, high, classifier.scalings)
        scaling = "raw" if known in FOR_GREY else known
        shifted = " minus 128" if network.quantised.dtype == "int8" else ""
        pixels = f"pixels go in as they are{shifted}" if scaling in ("raw", None) else "pixels are scaled so"
        meaning = f"that is {known!r}: {pixels}" if known else f"the range of no scaling here: as a guess, {pixels}"
        assumed.append(f"takes {network.quantised.dtype} for {low:.4g} to {high:.4g}, {meaning}")
    return classifier.scaled(scaling or "raw"), assumed


def scaling_of_range(low, high, scalings=SCALINGS):
    """The scaling whose pixels reach from `low` to `high`; None where there is no such one."""
    for scaling in scalings:
        start, end = _span(scaling)
        if max(abs(start - low), abs(end - high)) <= NEAR * (end - start):
            return scaling
    return None


@functools.cache
def _span(scaling):
    """The lowest and the highest number that a scaling makes of pixels."""
    if scaling == "raw":
        return 0.0, 255.0
    ends = np.array([0, 255], "uint8").repeat(3).reshape(2, 1, 1, 3)
    scaled = np.asarray(_scale(scaling, (1, 1, 3))(ends))
    return float(scaled.min()), float(scaled.max())


def _outputs_known(classifier):
    """The classifier whose outputs are probabilities, and what was assumed about them."""
    network = classifier.network
    if "contract" in classifier.provenance and network.outputs > 1:
        return classifier, ()
    if network.outputs == 1:
        return _of_two_classes(classifier, classifier.scores(_probes(classifier.size)))
    if output := network.quantised_output:  # rounded ones need not sum to 1; the file states their range
        logits = not _is_unit(output)
    else:
        scores = classifier.scores(_noise(2, classifier.size))
        logits = bool(scores.min() < 0 or np.abs(scores.sum(axis=1) - 1).max() > 1e-2)
    if not logits:
        return classifier, ()
    assumed = "puts out numbers that are no probabilities; a softmax is taken of them"
    if network.activation == "sigmoid":
        assumed = "puts out a sigmoid for each class; a softmax is taken of them, which keeps their order only"
    return dataclasses.replace(classifier, logits=True), (assumed,)


def _of_two_classes(classifier, scores):
    """The classifier of a network that puts out one number, with two probabilities.

    Raises: ConfigError for a softmax, which makes 1 of any number.
    """
    network, second = classifier.network, classifier.class_names[1]
    if network.activation == "softmax":
        raise ConfigError(
            f"{network.path} must distinguish two classes. Received: a softmax of one number, which is always 1. "
            "End the model with a sigmoid, or with two outputs."
        )
    if network.quantised_output:
        unit, source = _is_unit(network.quantised_output), "its quantised output says so"
    elif network.activation in ("sigmoid", "hard_sigmoid", "linear"):
        unit, source = network.activation != "linear", f"its last layer is {network.activation}"
    else:
        unit = bool(scores.min() >= 0 and scores.max() <= 1)
        source = f"a guess: on {len(scores)} test patterns it lies between {scores.min():.3g} and {scores.max():.3g}"
    kind = PROBABILITY if unit else LOGIT
    assumed = f"puts out one number, the {kind} of {second!r}, the second class, by Keras' convention ({source})"
    return dataclasses.replace(classifier, network=_both(network, unit), single=kind), (assumed,)


def _both(network, unit):
    """A network whose `run` puts out two probabilities for its one number; its `model` stays as it is."""

    def run(images):
        scores = network.run(images)
        if unit and not (scores.min() > -0.01 and scores.max() < 1.01):  # rounding aside
            raise ConfigError(
                f"{network.path} must put out probabilities, as it did at first. Received: {scores.min():.3g} to "
                f"{scores.max():.3g}. Save it with a sigmoid as its last operation."
            )
        second = scores if unit else 0.5 * (1 + np.tanh(scores / 2))  # the sigmoid, which can't overflow so
        return np.concatenate([1 - second, second], axis=1)

    return dataclasses.replace(network, run=run, outputs=2)


def both(x, kind):
    """The two probabilities, `(batch, 2)`, of a symbolic tensor `(batch, 1)` of the second one or its logit."""
    x = layers.Activation("sigmoid", dtype="float32")(x) if kind == LOGIT else x
    last = layers.Dense(2, trainable=False, dtype="float32", name="both_probabilities")
    x = last(x)
    last.set_weights([np.float32([[-1, 1]]), np.float32([1, 0])])
    return x


def _is_unit(output):
    """Whether a quantised output reaches from 0 to 1, as LiteRT's specification has it for sigmoid and softmax."""
    low, high = output.ends
    return abs(low) < 1e-6 and 0.9 < high <= 1 + 1e-6


def _noise(count, size):
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype="uint8")


def _probes(size):
    """Images, uint8 `(n, height, width, 3)`: one of each extreme colour, and noise of falling brightness."""
    corners = [np.full((*size, 3), colour, "uint8") for colour in itertools.product((0, 255), repeat=3)]
    noise = _noise(PROBES - len(corners), size)
    return np.stack([*corners, *(one // (2 + place) for place, one in enumerate(noise))])


@dataclass(frozen=True)
class Classifier:
    """A saved model of any format that takes images of any format.

    Attributes:
        network: the opened file.
        class_names: one per class, 'class 0' and so on where the file names none.
        provenance: what the file says of itself: run id, class names, configuration; empty for one from elsewhere.
        size: `(height, width)` that images are brought to.
        logits: whether a softmax must follow.
        scaling: of `SCALINGS`, 'raw' where the model scales by itself.
        scale: takes uint8 pixels, returns what the network takes.
        assumptions: what was assumed where the file left it open; each sentence continues the file's name.
        single: what the file's only number is, `PROBABILITY` or `LOGIT` of the second class; None where it puts out a
            number for each class. `network.run` then gives both probabilities, `network.model` still the one number.
    """

    network: Network
    class_names: tuple[str, ...]
    provenance: dict
    size: tuple[int, int]
    logits: bool
    scaling: str = "raw"
    scale: Callable | None = None
    assumptions: tuple[str, ...] = ()
    single: str | None = None

    def predict(self, images: Any, *, batch_size: int = BATCH) -> np.ndarray:
        """Class probabilities of images.

        Args:
            images: paths, bytes or binary files of images, or uint8 arrays `(height, width, 3)`, RGB in [0, 255], of
                any size; also one array `(n, height, width, 3)`, or one path.
            batch_size: images at a time.
        Returns: float32 `(n, classes)`.
        Raises: images.ImageError for an image that can't be decoded; ConfigError where the model can't be run, or needs
            more than `formats.MAX_ONNX_BYTES`: then take a smaller `batch_size`.
        """
        images = [images] if isinstance(images, str | bytes | os.PathLike) else images
        parts = [self.probabilities(np.stack(block)) for block in batched(map(self.pixels, images), batch_size)]
        return np.concatenate([np.empty((0, len(self.class_names)), "float32"), *parts])

    def pixels(self, image: Any) -> np.ndarray:
        """One image at the model's size, uint8 `(height, width, 3)`: shorter side resized, the centre cut out."""
        return fitted(image, self.size) if isinstance(image, np.ndarray) else decode(image, size=self.size)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Class probabilities, float32 `(n, classes)`, of uint8 images `(n, height, width, 3)` at the model's size.

        Raises: ConfigError where the model puts out NaN or infinity.
        """
        scores = self.scores(pixels)
        return special.softmax(scores, axis=1) if self.logits else scores

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """What the network puts out, float32; arguments and errors as `probabilities`."""
        scores = np.asarray(self.network.run(self.scaled_pixels(pixels)), "float32")
        if not np.isfinite(scores).all():
            raise ConfigError(f"{self.network.path} must put out finite numbers. Received: NaN or infinity.")
        return scores

    def scaled_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """What the network is given for uint8 RGB images at its size."""
        pixels = grey(pixels) if self.network.channels == 1 else pixels
        return np.asarray(self.scale(pixels)) if self.scale else pixels.astype(self.network.dtype)

    def scaled(self, scaling: str) -> Self:
        """The same classifier with another of its `scalings`."""
        if scaling not in self.scalings:
            raise ConfigError(
                f"`--input-scaling` must be one of {', '.join(self.scalings)} for {self.network.path.name}. "
                f"Received: {scaling!r}."
            )
        scale = None if scaling == "raw" else _scale(scaling, (*self.size, self.network.channels))
        return dataclasses.replace(self, scaling=scaling, scale=scale)

    @functools.cached_property
    def scalings(self) -> tuple[str, ...]:
        """Those of `SCALINGS` that the input can hold: integers hold pixels as they are, or what their range covers."""
        network = self.network
        names = FOR_GREY if network.channels == 1 else SCALINGS
        if network.quantised:
            return ("raw", *(name for name in names[1:] if _holds(network.quantised.ends, _span(name))))
        return ("raw",) if network.dtype == "uint8" else names

    @property
    def states_scaling(self) -> bool:
        """Whether the file itself says how pixels are scaled: by contract, layers that do it, or the input's range."""
        if "contract" in self.provenance or self.network.holds_scaling or self.scalings == ("raw",):
            return True
        if self.network.quantised is None:
            return False
        low, high = self.network.quantised.ends
        return scaling_of_range(low, high, self.scalings) is not None


def _holds(ends, span):
    """Whether a range covers most of another one and is not so much wider that its steps would be too coarse."""
    common = min(ends[1], span[1]) - max(ends[0], span[0])
    return common >= 0.7 * (span[1] - span[0]) and common >= 0.1 * (ends[1] - ends[0])


def grey(pixels):
    """Luma of RGB, as Pillow's mode L has it.

    Args:
        pixels: uint8 `(n, height, width, 3)`; or a symbolic float32 tensor, for a model that shall do the same.
    Returns: the same of one channel, `(n, height, width, 1)`, in [0, 255].
    """
    if isinstance(pixels, keras.KerasTensor):
        parts = keras.ops.sum(pixels * LUMA, axis=-1, keepdims=True)
        return keras.ops.floor((parts + 32768) / 65536)  # exact: every sum is an integer below 2**24
    parts = np.sum(pixels * LUMA.astype("int32"), axis=-1, keepdims=True)
    return ((parts + 32768) >> 16).astype("uint8")


def network_input(classifier, *, scale=blocks.scale):
    """Pixels as a model's input, and what the classifier's `keras.Model` takes for them.

    Args:
        classifier: of a `.keras` or `.h5`.
        scale: in place of `blocks.scale`.
    Returns: `(inputs, x)`, symbolic: uint8 `(batch, height, width, 3)`, and what goes into `classifier.network.model`.
    """
    network = classifier.network
    x = inputs = keras.Input((*classifier.size, 3), dtype="uint8", name="image")
    if network.channels == 1 or classifier.scaling != "raw" or network.model.inputs[0].dtype != "uint8":
        x = layers.Rescaling(1.0, dtype="float32", name="scaling_to_float")(x)
    x = grey(x) if network.channels == 1 else x
    return inputs, x if classifier.scaling == "raw" else scale(x, classifier.scaling)


def _scale(scaling, shape):
    """`blocks.scale` as a function of uint8 arrays `(n, height, width, channels)`; `shape` leaves n out."""
    x = inputs = keras.Input(shape, dtype="uint8")
    x = layers.Rescaling(1.0, dtype="float32")(x)
    return keras.Model(inputs, blocks.scale(x, scaling)).predict_on_batch


def batched(values, count):
    """Lists of up to `count` values, one after the other (`itertools.batched` of Python 3.12)."""
    values = iter(values)
    while block := list(itertools.islice(values, count)):
        yield block
