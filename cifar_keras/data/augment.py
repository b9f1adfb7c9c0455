"""Augmentation as pure functions `(image, seed) -> image`; `seed` is the triple (run's seed, epoch, image's index).

Stateful random layers draw other numbers when maps run in parallel; a function of the triple can't, and a run resumed
at epoch k sees what the unbroken run saw. Every function keeps uint8 and the image's shape.
"""

import numpy as np
import tensorflow as tf


def _uniform(seed, count, *, salt):
    """`count` float32 numbers in [0, 1) that depend on the triple `seed` and on `salt` alone.

    An integer hash, not TensorFlow's stateless generators: those have no vectorised form, so that `vectorized_map`
    runs them image by image in a loop.
    """
    state = tf.constant(salt, tf.uint32)
    for part in (seed[0], seed[1], seed[2]):
        state = _mixed(state ^ tf.cast(part, tf.uint32))
    counters = np.arange(1, count + 1, dtype="uint32") * np.uint32(0x9E3779B9)
    state = _mixed(state + tf.constant(counters))
    return tf.cast(tf.bitwise.right_shift(state, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def _mixed(x):
    """A bijection of 32 bits in which every input bit flips half of the output bits: `lowbias32` of hash-prospector."""
    for shift_by, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift_by, tf.uint32))) * tf.constant(multiplier, tf.uint32)
    return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))


def _at(image, rows, columns):
    """The image's pixels at `rows` x `columns`, places outside reflected at the border (without repeating it)."""
    height, width = image.shape[0], image.shape[1]
    rows = (height - 1) - tf.abs((height - 1) - tf.abs(rows))
    columns = (width - 1) - tf.abs((width - 1) - tf.abs(columns))
    return tf.gather(tf.gather(image, rows, axis=0), columns, axis=1)


def shift(image, seed, *, pad=2):
    """Moves the image by up to `pad` pixels each way, the border filled by reflection (arXiv:2404.00498, section 3.1).

    Args:
        image: uint8 `(height, width, 3)`, RGB in [0, 255].
        seed: int32 `(3,)`. Equal triples give equal results.
        pad: pixels, less than the image's sides.
    Returns: uint8, the shape of `image`.
    """
    moves = tf.cast(tf.floor(_uniform(seed, 2, salt=1) * (2 * pad + 1)), tf.int32) - pad
    return _at(image, tf.range(image.shape[0]) + moves[0], tf.range(image.shape[1]) + moves[1])


def crop(image, seed, *, pad=4):
    """Moves the image by up to `pad` pixels each way, black coming in: a random crop of the image with a border.

    Arguments and result as for `shift`.
    """
    moves = tf.cast(tf.floor(_uniform(seed, 2, salt=6) * (2 * pad + 1)), tf.int32)
    framed = tf.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    rows, columns = tf.range(image.shape[0]) + moves[0], tf.range(image.shape[1]) + moves[1]
    return tf.gather(tf.gather(framed, rows, axis=0), columns, axis=1)


def flip(image, seed):
    """Mirrors left to right in half of the cases. Arguments and result as for `shift`."""
    return tf.where(_uniform(seed, 1, salt=2)[0] < 0.5, image[:, ::-1], image)


def alternating_flip(image, seed):
    """Mirrors half of the images in even epochs and the other half in odd ones (arXiv:2404.00498, section 3.6).

    Two successive epochs show each image in both ways. Arguments and result as for `shift`.
    """
    first = _uniform(tf.stack([seed[0], 0, seed[2]]), 1, salt=3)[0] < 0.5  # not a function of the epoch
    return tf.where(tf.equal(first, seed[1] % 2 == 0), image[:, ::-1], image)


def colour_jitter(image, seed, *, strength=0.2):
    """Scales brightness, then contrast around the mean grey, by factors in [1 - strength, 1 + strength].

    Arguments and result as for `shift`.
    """
    factors = 1.0 + strength * (2.0 * _uniform(seed, 2, salt=4) - 1.0)
    bright = tf.cast(image, tf.float32) * factors[0]
    mean = tf.reduce_mean(bright)
    return tf.cast(tf.clip_by_value(tf.round(mean + (bright - mean) * factors[1]), 0.0, 255.0), tf.uint8)


def cutout(image, seed, *, share=0.375):
    """Greys out a square of `share` of the shorter side around a random place (DeVries and Taylor, arXiv:1708.04552).

    As in the paper the square may reach over the border. Arguments and result as for `shift`.
    """
    height, width = image.shape[0], image.shape[1]
    half = max(1, round(min(height, width) * share)) / 2
    centre = _uniform(seed, 2, salt=5) * [float(height), float(width)]
    rows = tf.abs(tf.range(height, dtype=tf.float32) + 0.5 - centre[0]) < half
    columns = tf.abs(tf.range(width, dtype=tf.float32) + 0.5 - centre[1]) < half
    return tf.where((rows[:, None] & columns[None, :])[..., None], tf.constant(128, tf.uint8), image)


# What the `augmentation` column of a model is made of.
STEPS = {step.__name__: step for step in (shift, crop, flip, alternating_flip, colour_jitter, cutout)}


def augmented(images, seeds, steps):
    """Applies `steps` in order to every image of a batch, each with its own seed.

    Args:
        images: uint8 `(batch, height, width, 3)`.
        seeds: int32 `(batch, 3)`, rows of (run's seed, epoch, image's index).
        steps: names from `STEPS`.
    """

    def one(pair):
        image, seed = pair
        for name in steps:
            image = STEPS[name](image, seed)
        return image

    return tf.vectorized_map(one, (images, seeds)) if steps else images
