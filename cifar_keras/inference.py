"""Predicting with a saved model."""

import numpy as np

from cifar_keras.datasets.base import Split
from cifar_keras.pipeline import evaluation_pipeline

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
    count = 10 * batch_size  # whose views are held at a time: memory stays flat however many there are
    starts = range(0, len(images), count)
    return np.concatenate([_mean_over_views(model, np.asarray(images[i : i + count]), batch_size) for i in starts])


def _mean_over_views(model, images, batch_size):
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    height, width = images.shape[1:3]
    total = 0.0
    for move, mirrored, weight in VIEWS:
        view = padded[:, 1 + move : 1 + move + height, 1 + move : 1 + move + width]
        view = view[:, :, ::-1] if mirrored else view
        total = total + weight * probabilities(model, view, batch_size=batch_size)
    return total
