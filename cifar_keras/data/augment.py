"""Augmentation as pure functions of images and seeds; a seed is the triple (run's seed, epoch, image's index).

Stateful random layers draw other numbers when maps run in parallel. A function of the triple does not, so a run resumed
at epoch k sees what the unbroken run saw. Every function keeps uint8 and the images' shape.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from cifar_keras.data.draws import compiled, uniform
from cifar_keras.data.mixing import MIXES
from cifar_keras.data.policies import aug_mix, rand_augment

Lines = tuple[tf.Tensor, tf.Tensor]  # rows and columns of each image, see `shift`


def _offsets(seeds: tf.Tensor, pad: int, *, salt: int) -> tf.Tensor:
    """How far each image moves down and right: int32 `(batch, 2)` in [-pad, pad]."""
    return tf.cast(tf.floor(uniform(seeds, 2, salt=salt) * (2 * pad + 1)), tf.int32) - pad


def shift(rows: tf.Tensor, columns: tf.Tensor, seeds: tf.Tensor, *, pad: int = 2) -> Lines:
    """Moves the image by up to `pad` pixels each way, the border filled by reflection (arXiv:2404.00498, section 3.1).

    Args:
        rows: int32 `(batch, height)`, which row of the image is shown at each height; -1 shows black.
        columns: int32 `(batch, width)`, the same for columns.
        seeds: int32 `(batch, 3)`. Equal triples give equal results.
        pad: pixels, less than the image's sides.
    Returns: `(rows, columns)`, of the same shapes.
    """

    def moved(lines, by):
        last = lines.shape[1] - 1
        wanted = last - tf.abs(last - tf.abs(tf.range(last + 1) + by[:, None]))  # the border itself is not repeated
        return tf.gather(lines, wanted, batch_dims=1)

    by = _offsets(seeds, pad, salt=1)
    return moved(rows, by[:, 0]), moved(columns, by[:, 1])


def far_shift(rows: tf.Tensor, columns: tf.Tensor, seeds: tf.Tensor) -> Lines:
    """`shift` by up to 4 pixels, for longer training."""
    return shift(rows, columns, seeds, pad=4)


def crop(rows: tf.Tensor, columns: tf.Tensor, seeds: tf.Tensor, *, pad: int = 4) -> Lines:
    """Moves the image by up to `pad` pixels each way, black coming in: a random crop of the image with a border.

    Arguments and result as for `shift`.
    """

    def moved(lines, by):
        framed = tf.pad(lines, ((0, 0), (pad, pad)), constant_values=-1)
        return tf.gather(framed, tf.range(lines.shape[1]) + by[:, None] + pad, batch_dims=1)

    by = _offsets(seeds, pad, salt=6)
    return moved(rows, by[:, 0]), moved(columns, by[:, 1])


def flip(rows: tf.Tensor, columns: tf.Tensor, seeds: tf.Tensor) -> Lines:
    """Mirrors left to right in half of the cases. Arguments and result as for `shift`."""
    return rows, tf.where(uniform(seeds, 1, salt=2) < 0.5, columns[:, ::-1], columns)


def alternating_flip(rows: tf.Tensor, columns: tf.Tensor, seeds: tf.Tensor) -> Lines:
    """Mirrors half of the images in even epochs and the other half in odd ones (arXiv:2404.00498, section 3.6).

    Two successive epochs show each image in both ways. Arguments and result as for `shift`.
    """
    first = uniform(seeds * [1, 0, 1], 1, salt=3) < 0.5  # not a function of the epoch
    return rows, tf.where(tf.equal(first, seeds[:, 1:2] % 2 == 0), columns[:, ::-1], columns)


def colour_jitter(images: tf.Tensor, seeds: tf.Tensor, *, strength: float = 0.2) -> tf.Tensor:
    """Scales brightness, then contrast around the mean grey, by factors in [1 - strength, 1 + strength].

    Args:
        images: uint8 `(batch, height, width, 3)`, RGB in [0, 255].
        seeds: int32 `(batch, 3)`. Equal triples give equal results.
        strength: in [0, 1).
    Returns: uint8, the shape of `images`.
    """
    factors = 1.0 + strength * (2.0 * uniform(seeds, 2, salt=4)[:, :, None, None, None] - 1.0)
    bright = tf.cast(images, tf.float32) * factors[:, 0]
    mean = tf.reduce_mean(bright, axis=(1, 2, 3), keepdims=True)
    return tf.cast(tf.clip_by_value(tf.round(mean + (bright - mean) * factors[:, 1]), 0.0, 255.0), tf.uint8)


@compiled
def cutout(images: tf.Tensor, seeds: tf.Tensor, *, share: float = 0.375) -> tf.Tensor:
    """Greys out a square of `share` of the shorter side around a random place (DeVries and Taylor, arXiv:1708.04552).

    As in the paper the square may reach over the border. Arguments and result as for `colour_jitter`.
    """
    height, width = images.shape[1], images.shape[2]
    half = max(1, round(min(height, width) * share)) / 2
    centre = uniform(seeds, 2, salt=5) * [float(height), float(width)]
    rows = tf.abs(tf.range(height, dtype=tf.float32) + 0.5 - centre[:, :1]) < half
    columns = tf.abs(tf.range(width, dtype=tf.float32) + 0.5 - centre[:, 1:]) < half
    return tf.where((rows[:, :, None] & columns[:, None, :])[..., None], tf.constant(128, tf.uint8), images)


MOVES: dict[str, Callable[..., Lines]] = {  # change places alone
    function.__name__: function for function in (shift, far_shift, crop, flip, alternating_flip)
}
VALUES: dict[str, Callable[..., tf.Tensor]] = {  # change values
    function.__name__: function for function in (colour_jitter, cutout, rand_augment, aug_mix)
}
STEPS = MOVES | VALUES | MIXES  # what a model row's `augmentation` column is made of


def mixes(steps: Sequence[str]) -> bool:
    """Whether the steps mix images, and so their labels.

    Raises: ValueError if a mix is followed by another step: a partner is mixed in as the network is to see it.
    """
    found = [name in MIXES for name in steps]
    if any(found[:-1]):
        raise ValueError(f"Of {', '.join(MIXES)}, one may be the last step. Received: {tuple(steps)}.")
    return any(found)


def augmented(images: Any, seeds: Any, steps: Sequence[str]) -> tf.Tensor:
    """Applies `steps` in order to every image of a batch, each with its own seed.

    Steps that only move pixels are composed as indices of rows and columns, so that a run of them copies the pixels
    once (`docs/speed.md`).

    Args:
        images: uint8 `(batch, height, width, 3)`.
        seeds: int32 `(batch, 3)`, rows of (run's seed, epoch, image's index).
        steps: names from `STEPS`.
    Returns: uint8, the shape of `images`.
    """
    return augmented_and_mixed(images, seeds, steps)[0]


def augmented_and_mixed(images: Any, seeds: Any, steps: Sequence[str]) -> tuple[tf.Tensor, tf.Tensor | None]:
    """`augmented`, and how much of each image is its own.

    Returns: the images, and float32 `(batch,)` in [0, 1]: the share of the image itself, the rest being that of the
        next one in the batch, of the first for the last. None if no step mixes images.
    """
    mixes(steps)
    share = None
    with tf.device("CPU"):  # where tf.data runs; XLA for a GPU needs parts of CUDA that may be missing
        images, seeds = tf.convert_to_tensor(images), tf.convert_to_tensor(seeds)
        for moving, names in itertools.groupby(steps, MOVES.__contains__):
            if moving:
                images = _moved(images, seeds, tuple(names))
                continue
            for name in names:
                if name in MIXES:
                    images, share = MIXES[name](images, seeds)
                else:
                    images = VALUES[name](images, seeds)
    return images, share


@compiled
def _moved(images: tf.Tensor, seeds: tf.Tensor, names: tuple[str, ...]) -> tf.Tensor:
    """The images after steps from `MOVES`, read from their places in one go."""
    count, (height, width) = tf.shape(images)[0], images.shape[1:3]
    rows, columns = (tf.tile(tf.range(side)[None], (count, 1)) for side in (height, width))
    for name in names:
        rows, columns = MOVES[name](rows, columns, seeds)
    firsts = tf.range(count)[:, None] * height
    places = (firsts + tf.maximum(rows, 0))[:, :, None] * width + tf.maximum(columns, 0)[:, None, :]
    pixels = tf.gather(tf.reshape(images, (-1, images.shape[3])), places)
    if "crop" not in names:
        return pixels
    shown = (rows >= 0)[:, :, None] & (columns >= 0)[:, None, :]
    return tf.where(shown[..., None], pixels, tf.constant(0, tf.uint8))
