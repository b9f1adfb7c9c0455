"""Reusable blocks of stock Keras layers, so that a saved model loads where this package is not installed.

A model is flat: `scaling_*` and `whitening` layers, which never train, then the backbone's, then `head_*` and `logits`.
"""

from collections.abc import Callable, Iterable, Sequence
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
        scaling: 'unit' ([0, 1]), 'half' ([-1, 1]: mean and deviation 0.5 of the unit), 'zscore' (CIFAR-10's mean and
            deviation), 'torch' (ImageNet's) or 'caffe' (BGR minus ImageNet's mean).
    """
    if scaling == "unit":
        return layers.Rescaling(1 / 255, dtype="float32", name="scaling_unit")(x)
    if scaling == "half":
        return layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="scaling_half")(x)
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
    raise ValueError(f"`scaling` must be 'unit', 'half', 'zscore', 'torch' or 'caffe'. Received: {scaling!r}")


def resnet50(x: keras.KerasTensor, *, momentum: float) -> keras.KerasTensor:
    """ResNet50 up to its last residual block, with random weights (He et al., arXiv:1512.03385, table 1).

    Args:
        x: float32 `(batch, height, width, 3)`, scaled.
        momentum: of every BatchNorm's moving statistics.
    Returns: features `(batch, height / 32, width / 32, 2048)`.
    """
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=x)
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = momentum
    return backbone.output


def resnet18(x: keras.KerasTensor, *, momentum: float, stem: int = 7) -> keras.KerasTensor:
    """ResNet18 as torchvision has it, with random weights (He et al., arXiv:1512.03385, table 1).

    Padding is explicit, since Keras' 'same' pads a strided convolution at one end only, torchvision's at both.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled.
        momentum: of every BatchNorm's moving statistics.
        stem: side of the first convolution's kernel: 7, with stride 2 and a pooling behind it, or 3, with neither,
            for images of 32 pixels (the paper's section 4.2).
    Returns: features `(batch, height / 32, width / 32, 512)`, with `stem` 3 `(batch, height / 8, width / 8, 512)`.
    """
    x = _padded(x, 64, stem, 2 if stem == 7 else 1, name="conv1")
    x = layers.Activation("relu", name="relu1")(_norm(x, momentum, "bn1"))
    if stem == 7:
        x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
        x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    for stage, filters in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _basic_block(x, filters, stride, momentum, name=f"stage{stage}_{block}")
    return x


def _basic_block(x, filters, stride, momentum, *, name):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution where the shape changes."""
    y = _norm(_padded(x, filters, 3, stride, name=f"{name}_conv1"), momentum, f"{name}_bn1")
    y = layers.Activation("relu", name=f"{name}_relu1")(y)
    y = _norm(_padded(y, filters, 3, 1, name=f"{name}_conv2"), momentum, f"{name}_bn2")
    if stride > 1:
        x = _norm(_padded(x, filters, 1, stride, name=f"{name}_shortcut"), momentum, f"{name}_shortcut_bn")
    return layers.Activation("relu", name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([x, y]))


def _padded(x, filters, side, stride, *, name):
    """A convolution without bias, zeros around the image, He initialisation."""
    if side > 1:
        x = layers.ZeroPadding2D(side // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(filters, side, stride, use_bias=False, kernel_initializer="he_normal", name=name)(x)


def _norm(x, momentum, name):
    return layers.BatchNormalization(momentum=momentum, epsilon=1e-5, name=name)(x)


def plain_cnn(
    x: keras.KerasTensor, *, momentum: float, groups: Sequence[tuple[int, ...]], norm: bool
) -> keras.KerasTensor:
    """The stacks of convolutions that tutorials write: 3x3, 'same', ReLU, a pooling behind each group.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled.
        momentum: of the BatchNorm, where there is one.
        groups: tuples of channels, a convolution each.
        norm: whether BatchNorm stands between convolution and ReLU.
    Returns: features `(batch, height / 2**len(groups), width / 2**len(groups), channels)`.
    """
    for number, channels in enumerate(groups, start=1):
        for place, filters in zip("abc", channels, strict=False):
            name = f"group{number}{place}"
            x = layers.Conv2D(filters, 3, padding="same", name=name)(x)
            x = _norm(x, momentum, f"{name}_bn") if norm else x
            x = layers.Activation("relu", name=f"{name}_relu")(x)
        x = layers.MaxPooling2D(2, name=f"group{number}_pool")(x)
    return x


def airnet(
    x: keras.KerasTensor, *, momentum: float, widths: Sequence[int] = (64, 256, 256), residual: bool = False
) -> keras.KerasTensor:
    """The three-group CNN of airbench (Jordan, arXiv:2404.00498, section 3), 2.0 million parameters.

    With `widths` (128, 384, 512) and `residual` it is the network of airbench96, by the same author, with 9.9 million
    (github.com/KellerJordan/cifar10-airbench).

    Departures: the whitening layer has no trainable bias (no stock layer trains a bias beside a frozen kernel);
    BatchNorm's epsilon is 1e-5, not 1e-12; the scale of the logits is part of `small_head`'s weights.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled; 32 pixels is what it was designed for.
        momentum: ignored; 0.6 as published, at which the statistics follow the last few steps in a run of any length.
        widths: channels of the three groups.
        residual: three convolutions a group instead of two, with a shortcut around the last two.
    Returns: features `(batch, h, w, widths[-1])`.
    """
    del momentum
    x = layers.Conv2D(24, 2, use_bias=False, trainable=False, name="whitening")(x)
    x = layers.Activation("gelu", name="whitening_gelu")(x)
    for group, width in enumerate(widths, start=1):
        x = _air_unit(x, width, name=f"group{group}a", pooled=True)
        if residual:
            y = _air_unit(x, width, name=f"group{group}b")
            x = _air_unit(y, width, name=f"group{group}c", shortcut=x)
        else:
            x = _air_unit(x, width, name=f"group{group}b")
    return x


def _air_unit(x, width, *, name, pooled=False, shortcut=None):
    """Convolution, pooling, BatchNorm without scale, the sum with the shortcut, GELU."""
    x = dirac_convolution(x, width, x.shape[-1], name=name)
    x = layers.MaxPooling2D(2, name=f"{name}_pool")(x) if pooled else x
    x = layers.BatchNormalization(scale=False, momentum=0.6, epsilon=1e-5, name=f"{name}_bn")(x)
    x = x if shortcut is None else layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("gelu", name=f"{name}_gelu")(x)


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


def plain_head(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Mean over places, linear: what a tutorial writes."""
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
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


BACKBONES: dict[str, Callable[..., keras.KerasTensor]] = {
    "resnet50": resnet50,
    "resnet18": resnet18,
    "resnet18_32": partial(resnet18, stem=3),
    "airnet": airnet,
    "airnet_residual": partial(airnet, widths=(128, 384, 512), residual=True),
    "simple": partial(plain_cnn, groups=((32,), (64,)), norm=False),
    "simple_norm": partial(plain_cnn, groups=((32,), (64,)), norm=True),
    "five_conv": partial(plain_cnn, groups=((64, 64), (128, 128), (256,)), norm=True),
}
HEADS: dict[str, Callable[..., keras.KerasTensor]] = {
    "probe": probe_head,
    "plain": plain_head,
    "small": small_head,
    "dense128": partial(dense_head, units=128),
    "dense128_dropout": partial(dense_head, units=128, dropout=0.5, dropped="features"),
    "dense512_dropout": partial(dense_head, units=512, dropout=0.5),
}
