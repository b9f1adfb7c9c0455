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
