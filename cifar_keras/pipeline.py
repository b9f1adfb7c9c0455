"""tf.data pipelines: uint8 images at the dataset's own size. They know no model, and no array at 224 pixels exists."""

import numpy as np
import tensorflow as tf

from cifar_keras.augment import augmented


def steps_per_epoch(split, batch_size):
    """Training steps of one epoch; the last incomplete batch is left out, another one each epoch."""
    return len(split) // batch_size


def epoch_order(count, *, seed, epoch):
    """The order in which an epoch visits the images: int64 `(count,)`, a pure function of its arguments."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def train_pipeline(split, *, batch_size, seed, epochs, first_epoch=0, augmentation=()):
    """Batches of augmented training images, epoch after epoch.

    Order and augmentation are pure functions of (seed, epoch, index), so resuming is starting at `first_epoch`.

    Args:
        split: `datasets.base.Split`.
        batch_size: images a batch, at most the split's.
        seed: the run's seed.
        epochs: the epoch (exclusive) at which the stream ends.
        first_epoch: where it starts.
        augmentation: names from `augment.STEPS`.
    Returns: `tf.data.Dataset` of (uint8 `(batch, height, width, 3)`, int32 `(batch,)`).
    """

    def order(epoch):
        indices = tf.numpy_function(lambda e: epoch_order(len(split), seed=seed, epoch=int(e)), [epoch], tf.int64)
        return tf.ensure_shape(indices, (len(split),))

    def one_epoch(epoch):
        batches = tf.data.Dataset.from_tensor_slices(order(epoch))
        batches = batches.batch(batch_size, drop_remainder=True)  # inside the epoch: a batch never straddles two
        return batches.map(lambda indices: (epoch, indices))

    def load(epoch, indices):
        images, labels = gather(split, indices)
        seeds = tf.stack(
            [
                tf.fill(tf.shape(indices), tf.cast(seed, tf.int32)),
                tf.fill(tf.shape(indices), tf.cast(epoch, tf.int32)),
                tf.cast(indices, tf.int32),
            ],
            axis=-1,
        )
        return augmented(images, seeds, augmentation), labels

    epochs = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
    return epochs.map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_pipeline(split, *, batch_size):
    """Batches of the split as it is, in order, the tail included. Returns as `train_pipeline` does."""
    batches = tf.data.Dataset.range(len(split)).batch(batch_size)
    batches = batches.map(lambda indices: gather(split, indices), num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def gather(split, indices):
    """The images and labels at `indices` (int64 `(batch,)`), read from an array or from a memory map on disk."""

    def read(chosen):
        return np.asarray(split.images[chosen]), split.labels[chosen].astype("int32")

    images, labels = tf.numpy_function(read, [indices], (tf.uint8, tf.int32), stateful=False)
    return tf.ensure_shape(images, (None, *split.images.shape[1:])), tf.ensure_shape(labels, (None,))
