"""Reusable blocks of stock Keras layers, so that a saved model loads where this package is not installed.

A model is flat: `scaling_*` and `whitening` layers, which never train, then the backbone's, then `head_*` and `logits`.
"""

from collections.abc import Callable, Iterable
from functools import partial

import keras
import numpy as np
from keras import layers

CIFAR_MEAN = (125.307, 122.950, 113.865)  # of CIFAR-10's 50,000 training images, per channel, on [0, 255]
CIFAR_STD = (62.993, 62.089, 66.705)
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # as torchvision's weights were trained with
IMAGENET_STD = (58.395, 57.12, 57.375)
STATISTICS = {"zscore": (CIFAR_MEAN, CIFAR_STD), "torch": (IMAGENET_MEAN, IMAGENET_STD)}
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)  # of ImageNet, as in `keras.applications.resnet50.preprocess_input`


def scale(x: keras.KerasTensor, scaling: str) -> keras.KerasTensor:
    """Brings RGB in [0, 255] to what the backbone was designed for, in float32 under every precision policy.

    Args:
        x: float32 `(batch, height, width, 3)`, RGB in [0, 255].
        scaling: 'unit' ([0, 1]), 'half' ([-1, 1]: mean and deviation 0.5 of the unit), 'lite' ((x - 127) / 128),
            'zscore' (CIFAR-10's mean and deviation), 'torch' (ImageNet's) or 'caffe' (BGR minus ImageNet's mean).
    """
    if scaling == "unit":
        return layers.Rescaling(1 / 255, dtype="float32", name="scaling_unit")(x)
    if scaling == "half":
        return layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="scaling_half")(x)
    if scaling == "lite":
        return layers.Rescaling(1 / 128, offset=-127 / 128, dtype="float32", name="scaling_lite")(x)
    if scaling in STATISTICS:
        mean, deviation = STATISTICS[scaling]
        variance = np.square(deviation)
        return layers.Normalization(mean=mean, variance=variance, dtype="float32", name=f"scaling_{scaling}")(x)
    if scaling == "caffe":
        # A frozen 1x1 convolution: slicing channels saves to .keras but makes the complete .h5 unloadable.
        layer = layers.Conv2D(3, 1, trainable=False, dtype="float32", name="scaling_caffe")
        x = layer(x)
        layer.set_weights([np.eye(3, dtype="float32")[::-1][None, None], -np.array(CAFFE_MEAN_BGR, "float32")])
        return x
    raise ValueError(f"`scaling` must be 'unit', 'half', 'lite', 'zscore', 'torch' or 'caffe'. Received: {scaling!r}")


def dirac_convolution(x: keras.KerasTensor, filters: int, channels: int, *, name: str) -> keras.KerasTensor:
    """A 3x3 convolution whose first `channels` filters start as the identity (arXiv:2404.00498, section 3.3)."""
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    layer = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer=uniform, name=name)
    x = layer(x)
    (kernel,) = layer.get_weights()
    count = min(channels, filters)
    kernel[..., :count] = 0.0
    kernel[1, 1, range(count), range(count)] = 1.0
    layer.set_weights([kernel])
    return x


def whitening_kernel(blocks: Iterable[np.ndarray], *, size: int = 2, epsilon: float = 5e-4) -> np.ndarray:
    """The patch-whitening filters of arXiv:2404.00498, section 3.2: scaled eigenvectors and their negatives.

    Args:
        blocks: float32 arrays `(n, height, width, 3)`, scaled as the network sees them; any number of images in all.
        size: side of the patches.
        epsilon: keeps directions without variance from exploding.
    Returns: float32 `(size, size, 3, 2 * 3 * size**2)`.
    """
    covariance, count = 0.0, 0
    for images in blocks:
        patches = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
        patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * 3).astype("float64")  # (y, x, channel)
        covariance, count = covariance + patches.T @ patches, count + len(patches)
    values, vectors = np.linalg.eigh(covariance / count)
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), range(len(values))])  # LAPACK builds differ in sign
    filters = (vectors / np.sqrt(values + epsilon)).reshape(size, size, 3, -1)
    return np.concatenate([filters, -filters], axis=-1).astype("float32")


def probe_head(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Mean over places, BatchNorm without affine, linear: the linear probe of He et al., arXiv:2111.06377, A.1.

    The normalisation makes one learning rate fit features of any scale.
    """
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    x = layers.BatchNormalization(center=False, scale=False, momentum=0.9, name="head_norm")(x)
    return layers.Dense(classes, dtype="float32", name="logits")(x)


def plain_head(x: keras.KerasTensor, classes: int, *, dropout: float = 0.0) -> keras.KerasTensor:
    """Mean over places, linear: what a tutorial writes; with `dropout`, that share of the means is dropped."""
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    x = layers.Dropout(dropout, name="head_dropout")(x) if dropout else x
    return layers.Dense(classes, dtype="float32", name="logits")(x)


def small_head(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Maximum over places, linear without bias, starting at logits near zero (arXiv:2404.00498, section 3.1)."""
    x = layers.GlobalMaxPooling2D(name="head_pool")(x)
    initializer = keras.initializers.RandomNormal(stddev=1 / x.shape[-1])
    return layers.Dense(classes, use_bias=False, kernel_initializer=initializer, dtype="float32", name="logits")(x)


def dense_head(
    x: keras.KerasTensor, classes: int, *, units: int, dropout: float = 0.0, dropped: str = "hidden"
) -> keras.KerasTensor:
    """Every place of every channel, a hidden layer, linear, how tutorials' CNNs end.

    Args:
        x: features `(batch, height, width, channels)`.
        classes: of the logits.
        units: of the hidden layer.
        dropout: share that is dropped.
        dropped: what is, the 'features' or the 'hidden' units.
    """
    x = layers.Flatten(name="head_pool")(x)  # the features, as a pooling's are
    x = layers.Dropout(dropout, name="head_dropout")(x) if dropout and dropped == "features" else x
    x = layers.Dense(units, activation="relu", name="head_hidden")(x)
    x = layers.Dropout(dropout, name="head_dropout")(x) if dropout and dropped == "hidden" else x
    return layers.Dense(classes, dtype="float32", name="logits")(x)


HEADS: dict[str, Callable[..., keras.KerasTensor]] = {
    "probe": probe_head,
    "plain": plain_head,
    "plain_dropout": partial(plain_head, dropout=0.5),
    "small": small_head,
    "dense128": partial(dense_head, units=128),
    "dense128_dropout": partial(dense_head, units=128, dropout=0.5, dropped="features"),
    "dense512_dropout": partial(dense_head, units=512, dropout=0.5),
}
