"""tf.data pipelines: uint8 images at the dataset's own size. They know no model, and no array at 224 pixels exists.

What a split holds instead of images (features, see `training/features.py`) passes through in its own shape and dtype.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cifar_keras.data.augment import augmented_and_mixed
from cifar_keras.data.base import Split
from cifar_keras.data.mixing import mixed_labels
from cifar_keras.utils.system import cores

READY = 2  # finished batches that wait for the model
MOST_MADE = 8  # batches being made at once, which bounds memory


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Training steps of one epoch; the last incomplete batch is left out, another one each epoch."""
    return len(split) // batch_size


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the images: int64 `(count,)`, a pure function of its arguments."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def train_pipeline(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    epochs: int,
    first_epoch: int = 0,
    augmentation: Sequence[str] = (),
    classes: int | None = None,
) -> tf.data.Dataset:
    """Batches of augmented training images, epoch after epoch, from `first_epoch` to `epochs` (exclusive).

    Order and augmentation are pure functions of (seed, epoch, index), so resuming is starting at `first_epoch`.
    `augmentation` names functions of `augment.STEPS`; `batch_size` is at most the number of images. Where it mixes
    images, it needs to know the number of `classes`.

    Returns: a stream of (uint8 `(batch, height, width, 3)`, int32 `(batch,)`); where images are mixed, of each class's
        share in place of the labels: float32 `(batch, classes)`.
    """
    shape = (steps_per_epoch(split, batch_size), batch_size)  # inside the epoch: a batch never straddles two

    def drawn(epoch):
        order = epoch_order(len(split), seed=seed, epoch=int(epoch))
        return order[: math.prod(shape)].reshape(shape)

    def one_epoch(epoch):
        # Not stateful: under determinism tf.data takes a stream with a stateful function apart and runs it in step.
        batches = tf.ensure_shape(tf.numpy_function(drawn, [epoch], tf.int64, stateful=False), shape)
        return tf.data.Dataset.from_tensor_slices(batches).map(lambda indices: (epoch, indices))

    def load(epoch, indices):
        return shown(split, indices, seed=seed, epoch=epoch, augmentation=augmentation, classes=classes)

    return _streamed(tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch), load)


def evaluation_pipeline(
    split: Split,
    *,
    batch_size: int,
    first: int = 0,
    seed: int = 0,
    epoch: int = 0,
    augmentation: Sequence[str] = (),
) -> tf.data.Dataset:
    """Batches of the split in order, from image `first` to the last one, the incomplete last batch included.

    With an `augmentation`, the images are as `train_pipeline` shows them in that epoch with that seed.

    Returns: as `train_pipeline` does.
    """
    batches = tf.data.Dataset.range(first, len(split)).batch(batch_size)

    def load(indices):
        return shown(split, indices, seed=seed, epoch=epoch, augmentation=augmentation)

    return _streamed(batches, load)


def _streamed(batches, load):
    """Loads batches ahead of their use, without tf.data's autotuning.

    Its thread sleeps ever longer between two looks, and the end of a stream waits for it to wake: a pass that needs 2.6
    seconds took 5.1 (`docs/speed.md`). Batches keep their order, however many are being made.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    workers = max(2, min(cores() // 2, MOST_MADE))
    return batches.map(load, num_parallel_calls=workers, deterministic=True).prefetch(READY).with_options(options)


def shown(
    split: Split,
    indices: tf.Tensor,
    *,
    seed: int,
    epoch: int | tf.Tensor,
    augmentation: Sequence[str],
    classes: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The images at `indices` (int64 `(batch,)`) as an epoch shows them, and their labels, see `train_pipeline`."""
    images, labels = gather(split, indices, epoch)
    triple = (seed, epoch, indices)
    seeds = tf.stack([tf.broadcast_to(tf.cast(part, tf.int32), tf.shape(indices)) for part in triple], axis=-1)
    images, share = augmented_and_mixed(images, seeds, augmentation)
    return images, labels if share is None else mixed_labels(labels, share, classes)


def gather(split: Split, indices: tf.Tensor, epoch: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What stands for the images in an epoch, and their labels, read from an array or from a file on disk."""

    def read(chosen, epoch):
        return np.asarray(split.in_epoch(int(epoch))[chosen]), split.labels[chosen].astype("int32")

    types = (tf.as_dtype(split.images.dtype), tf.int32)
    images, labels = tf.numpy_function(read, [indices, epoch], types, stateful=False)
    return tf.ensure_shape(images, (None, *split.images.shape[1:])), tf.ensure_shape(labels, (None,))
