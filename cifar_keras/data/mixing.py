"""MixUp and CutMix: each image is mixed with the next one of its batch, and so are their labels.

The batch is a function of (seed, epoch), so the partner is one too. The share is drawn for each image, from its seed.
"""

from collections.abc import Callable

import tensorflow as tf

from cifar_keras.data.draws import uniform

Mixed = tuple[tf.Tensor, tf.Tensor]  # images and shares, see `mixup`


def mixup(images: tf.Tensor, seeds: tf.Tensor) -> Mixed:
    """A weighted mean of both images (Zhang et al., arXiv:1710.09412), the weight uniform: Beta(1, 1), as for CIFAR-10.

    Args:
        images: uint8 `(batch, height, width, 3)`.
        seeds: int32 `(batch, 3)`. Equal triples give equal shares.
    Returns: uint8 images of the same shape, and float32 `(batch,)` in [0, 1], the share of the image itself.
    """
    share = uniform(seeds, 1, salt=7)[:, 0]
    own, partner = (tf.cast(side, tf.float32) for side in (images, _next(images)))
    mean = partner + share[:, None, None, None] * (own - partner)
    return tf.cast(tf.round(mean), tf.uint8), share


def cutmix(images: tf.Tensor, seeds: tf.Tensor) -> Mixed:
    """A rectangle of the partner in half of the images (Yun et al., arXiv:1905.04899, algorithm 1).

    Its area is uniform before the border cuts it off, its centre anywhere. The share is what is left of the image. The
    authors' CIFAR code mixes half of the batches; here it is half of the images. Arguments and result as for `mixup`.
    """
    height, width = images.shape[1], images.shape[2]
    drawn = uniform(seeds, 4, salt=8)
    side = tf.sqrt(drawn[:, 0]) * tf.cast(drawn[:, 1] < 0.5, tf.float32)
    rows, columns = (
        tf.abs(tf.range(length, dtype=tf.float32) + 0.5 - centre[:, None] * length) < side[:, None] * length / 2
        for length, centre in ((height, drawn[:, 2]), (width, drawn[:, 3]))
    )
    patch = rows[:, :, None] & columns[:, None, :]
    share = 1.0 - tf.reduce_mean(tf.cast(patch, tf.float32), axis=(1, 2))
    return tf.where(patch[..., None], _next(images), images), share


MIXES: dict[str, Callable[..., Mixed]] = {function.__name__: function for function in (mixup, cutmix)}


def mixed_labels(labels: tf.Tensor, share: tf.Tensor, classes: int | None) -> tf.Tensor:
    """How much of each image belongs to each class.

    Args:
        labels: int32 `(batch,)`.
        share: float32 `(batch,)`, of each image itself; the rest is that of its partner.
        classes: how many there are.
    Returns: float32 `(batch, classes)`, rows that sum to 1.
    Raises: ValueError if the number of classes is unknown: mixed images have no single label.
    """
    if classes is None:
        raise ValueError("`classes` must be given where images are mixed. Received: None.")
    own, partner = (tf.one_hot(side, classes) for side in (labels, _next(labels)))
    return share[:, None] * own + (1.0 - share[:, None]) * partner


def _next(batch):
    """Each row's successor in the batch; the last one's is the first."""
    return tf.roll(batch, -1, axis=0)
