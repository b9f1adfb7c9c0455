"""Random numbers as pure functions of seeds, and how functions of images are compiled."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cifar_keras.utils.system import XLA


def compiled(function: Callable) -> Callable:
    """The function as one loop over the pixels, made by XLA where there is XLA.

    For arithmetic on integers and comparisons alone: XLA may round a sum in another way.
    """
    return tf.function(function, autograph=False, jit_compile=XLA or None)


def uniform(seeds: tf.Tensor, count: int, *, salt: int) -> tf.Tensor:
    """`count` float32 numbers in [0, 1) for each row of `seeds`, which depend on that triple and on `salt` alone.

    An integer hash, because TensorFlow's stateless generators take one seed for a whole batch.
    """
    state = tf.constant(salt, tf.uint32)
    for part in range(3):
        state = _mixed(state ^ tf.cast(seeds[:, part], tf.uint32))
    counters = np.arange(1, count + 1, dtype="uint32") * np.uint32(0x9E3779B9)
    state = _mixed(state[:, None] + tf.constant(counters))
    return tf.cast(tf.bitwise.right_shift(state, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def _mixed(x: tf.Tensor) -> tf.Tensor:
    """A bijection of 32 bits in which every input bit flips half of the output bits: `lowbias32` of hash-prospector."""
    for shift_by, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift_by, tf.uint32))) * tf.constant(multiplier, tf.uint32)
    return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))
