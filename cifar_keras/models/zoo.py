"""MODELS: the models side by side, one row each, and the one builder that reads the columns."""

import dataclasses
import math
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from cifar_keras.config import NATIVE, ConfigError, Training
from cifar_keras.data.base import Rows
from cifar_keras.models import blocks
from cifar_keras.models.backbones import BACKBONES, CHOICES


@dataclass(frozen=True)
class ModelSpec:
    """One model. A variant of an experiment may override a named column; nothing about a model stands elsewhere.

    Attributes:
        name: the value of `Training.model`.
        backbone: key of `backbones.BACKBONES`.
        pixels: side at which the backbone sees the images; other sizes are resized inside the model.
        scaling: of the pixels, see `blocks.scale`.
        trainable: 'head' (the backbone is frozen, its BatchNorm in inference mode), 'all', or what the names of the
            backbone's trained layers begin with ('stage4'), the rest being frozen.
        head: key of `blocks.HEADS`.
        augmentation: names of `augment.STEPS`, applied in order.
        weights: what the backbone starts from when nothing else is asked for: 'imagenet', 'none', or 'source', a
            model trained here, which `--weights` must name.
        images_per_second: rough training throughput on 2 CPU cores; budgets are made of it.
        gains_on_amx: whether bfloat16 was measured to train this model faster on a CPU with AMX (`docs/speed.md`);
            only there does `--precision auto` choose it on a CPU. It describes speed, and is no part of the identity.
        source: where the architecture comes from.
        frozen_norm: 'training' lets the BatchNorm of frozen layers normalise by the batch and go on averaging, its
            scale and shift being frozen all the same; None: inference mode.
    """

    name: str
    backbone: str
    pixels: int
    scaling: str
    trainable: str
    head: str
    augmentation: tuple[str, ...]
    weights: str
    images_per_second: float
    gains_on_amx: bool
    source: str
    frozen_norm: str | None = None


SHIFT_FLIP = ("shift", "flip")
CROP_FLIP = ("crop", "flip")
REFLECTED = ("far_shift", "flip")  # as wide ResNets crop: the border is filled by reflection
AIRBENCH = ("shift", "alternating_flip")
TUTORIAL = (*CROP_FLIP, "colour_jitter")
# fmt: off
ROWS = (
    #         name                    backbone    pixels scaling   trainable head     augmentation weights img/s AMX    source  # noqa: E501
    ModelSpec("resnet50_frozen",      "resnet50",  32,   "caffe",  "head", "probe", (),          "imagenet", 200, False, "arXiv:1512.03385"),  # noqa: E501
    ModelSpec("resnet50_augment_224", "resnet50", 224,   "caffe",  "head", "probe", SHIFT_FLIP,  "imagenet",   9, False, "arXiv:1512.03385"),  # noqa: E501
    ModelSpec("resnet50_finetune",    "resnet50",  32,   "caffe",  "all",  "probe", SHIFT_FLIP,  "imagenet",  75, False, "arXiv:1512.03385"),  # noqa: E501
    ModelSpec("scratch_cnn",          "airnet",    32,   "zscore", "all",  "small", AIRBENCH,    "none",     175, True,  "arXiv:2404.00498"),  # noqa: E501
    # the further experiments'
    ModelSpec("simple_cnn",           "simple",    32,   "unit",   "all",  "dense128", (),       "none",    1500, False, "a tutorial's"),  # noqa: E501
    ModelSpec("five_conv",            "five_conv", 32,   "half",   "all",  "dense512_dropout", TUTORIAL, "none", 100, False, "a tutorial's"),  # noqa: E501
    ModelSpec("plain_cnn",            "conv4",     32,   "zscore", "all",  "plain", CROP_FLIP,   "none",    1000, False, "arXiv:1409.1556"),  # noqa: E501
    ModelSpec("resnet18_224",         "resnet18", 224,   "torch", "stage4", "plain", SHIFT_FLIP, "imagenet",  12, False, "arXiv:1512.03385"),  # noqa: E501
    ModelSpec("compressed_cnn",       "airnet",    32,   "zscore", "all",  "small", AIRBENCH,    "source",   175, False, "arXiv:2404.00498"),  # noqa: E501
    ModelSpec("transferred_cnn",      "airnet",    32,   "zscore", "all",  "probe", AIRBENCH,    "source",   175, False, "arXiv:2404.00498"),  # noqa: E501
    ModelSpec("resnet18_32",       "resnet18_32", 32,    "zscore", "all",  "plain", CROP_FLIP,   "none",      40, False, "arXiv:1512.03385"),  # noqa: E501
    ModelSpec("resnet34_32",       "resnet34_32", 32,    "zscore", "all",  "plain", CROP_FLIP,   "none",      20, False, "arXiv:1512.03385"),  # noqa: E501
    ModelSpec("densenet_bc_100_12", "densenet100", 32,   "zscore", "all",  "plain", CROP_FLIP,   "none",      24, False, "arXiv:1608.06993"),  # noqa: E501
    ModelSpec("wrn_16_4",             "wrn_16_4",  32,   "zscore", "all",  "plain", REFLECTED,   "none",      60, False, "arXiv:1605.07146"),  # noqa: E501
    ModelSpec("wrn_28_10",            "wrn_28_10", 32,   "zscore", "all",  "plain", REFLECTED,   "none",       4, False, "arXiv:1605.07146"),  # noqa: E501
)
# fmt: on
MODELS = {row.name: row for row in ROWS}


def row_of(training: Training, *, backbone: str | None = None, pixels: int | None = None) -> ModelSpec:
    """The recipe's row of `MODELS` with the variant's overrides.

    Args:
        training: the recipe.
        backbone: the network in the place of the row's own, with the scaling that its weights need; None: its own.
        pixels: side at which the backbone sees the images; None: the row's own, or the variant's.
    Raises: ConfigError if the row, a column or the backbone does not exist, or if the variant is about another size.
    """
    if training.model not in MODELS:
        raise ConfigError(f"`model` must be one of {', '.join(MODELS)}. Received: {training.model!r}.")
    columns = {field.name for field in dataclasses.fields(ModelSpec)}
    if unknown := set(training.override) - columns:
        raise ConfigError(
            f"`override` takes columns of a model's row: {', '.join(sorted(columns))}. Received: {unknown}."
        )
    own, changed = MODELS[training.model], dict(training.override)
    if pixels is not None:
        changed["pixels"] = _checked(pixels, changed.get("pixels"))
    row = own if backbone in (None, own.backbone) else _with_backbone(own, backbone)
    if changed.get("scaling") == NATIVE:
        changed["scaling"] = BACKBONES[row.backbone].scaling
    speed = own.images_per_second * (own.pixels / changed.get("pixels", own.pixels)) ** 2
    speed = changed.pop("images_per_second", speed) * row.images_per_second / own.images_per_second
    return dataclasses.replace(row, **changed, images_per_second=speed)


def _checked(pixels, of_variant):
    """The size that `--pixels` asks for; raises ConfigError if it is out of range or the variant has its own."""
    if not 32 <= pixels <= 1024:
        raise ConfigError(f"`--pixels` must be 32 to 1024. Received: {pixels}.")
    if of_variant is not None:
        raise ConfigError(
            f"`--pixels` is for variants that leave the size open; this one is about {of_variant} pixels. "
            f"Received: {pixels}; leave it out."
        )
    return pixels


def _with_backbone(row, name):
    """The row with another network, which its name names too. A row that needs a source starts from ImageNet then."""
    if name not in CHOICES:
        raise ConfigError(f"`--backbone` must be one of {', '.join(CHOICES)}. Received: {name!r}.")
    network = BACKBONES[name]
    return dataclasses.replace(
        row,
        name=row.name.replace(row.backbone, name) if row.backbone in row.name else f"{row.name}_{name}",
        backbone=name,
        weights="imagenet" if row.weights == "source" else row.weights,
        scaling=network.scaling or row.scaling,
        images_per_second=row.images_per_second * network.speed / BACKBONES[row.backbone].speed,
    )


def build(row: ModelSpec, *, image_shape: tuple[int, ...], classes: int, steps: int, seed: int) -> keras.Model:
    """Builds a row's model with random weights.

    Args:
        row: of `MODELS`, perhaps with overrides.
        image_shape: `(height, width, 3)` of the dataset's images.
        classes: number of classes.
        steps: training steps of the run, see `momentum_for`.
        seed: of the initial weights.
    Returns: a flat functional `keras.Model`: uint8 `(batch, *image_shape)`, RGB in [0, 255], to float32 logits
        `(batch, classes)`.
    """
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input(image_shape, dtype="uint8", name="image")
    x = layers.Rescaling(1.0, dtype="float32", name="scaling_cast")(x)  # Resizing would round uint8 to uint8
    if image_shape[:2] != (row.pixels, row.pixels):
        x = layers.Resizing(row.pixels, row.pixels, antialias=True, dtype="float32", name="scaling_resize")(x)
    x = blocks.scale(x, row.scaling)
    x = BACKBONES[row.backbone].build(x, momentum=momentum_for(steps))
    return keras.Model(inputs, blocks.HEADS[row.head](x, classes), name=row.name)


def momentum_for(steps: int) -> float:
    """BatchNorm momentum whose averaging window, 1 / (1 - momentum), is a tenth of the run; at most Keras' 0.99.

    At 0.99 in a run of 100 steps the moving statistics would still be a third of their initial values.
    """
    return float(np.clip(1 - 10 / steps, 0.5, 0.99))


def initialise_from_data(model: keras.Model, images: np.ndarray | Rows) -> None:
    """Sets the weights that are computed from training images rather than learned: whitening filters, if there are any.

    Args:
        model: from `build`.
        images: uint8 `(n, height, width, 3)`; an array or a memory map, of which a block is read at a time.
    """
    if "whitening" not in [layer.name for layer in model.layers]:
        return
    whitening = model.get_layer("whitening")
    scale = keras.Model(model.input, whitening.input)
    scaled = (scale.predict_on_batch(np.asarray(images[i : i + 250])) for i in range(0, len(images), 250))
    whitening.set_weights([blocks.whitening_kernel(scaled)])


def part_of(name: str) -> str:
    """Which part of a model the layer of this name belongs to: 'scaling', 'backbone' or 'head'."""
    if name.startswith("scaling_"):
        return "scaling"
    return "head" if name.startswith(("head_", "logits")) else "backbone"


def backbone_layers(model: keras.Model) -> list[layers.Layer]:
    """The backbone's layers that hold weights, in order: what transfer copies, whitening filters included."""
    return [layer for layer in model.layers if layer.weights and part_of(layer.name) == "backbone"]


def set_trainable(model: keras.Model, row: ModelSpec, *, freeze_backbone: bool) -> None:
    """Freezes and thaws layer by layer, as the row and the stage say.

    A frozen BatchNorm (`trainable = False` on the layer itself) runs in inference mode and keeps its statistics;
    passing `training=False` to a backbone would not survive `fit` (keras#23364).
    """
    for layer in model.layers:
        part = part_of(layer.name)
        frozen = part == "backbone" and (freeze_backbone or not _trains(layer.name, row.trainable))
        layer.trainable = part != "scaling" and not frozen
        if frozen and row.frozen_norm == "training" and isinstance(layer, layers.BatchNormalization):
            layer.trainable = True  # it follows the batch, but
            for variable in layer.trainable_variables:  # neither scale nor shift is trained
                variable.trainable = False


def parameter_counts(model, row, training):
    """Total parameters, and those that some stage trains."""
    set_trainable(model, row, freeze_backbone=all(stage.freeze_backbone for stage in training.stages))
    sizes = [math.prod(variable.shape) for variable in model.trainable_variables]
    return {"parameters": model.count_params(), "parameters_trainable": sum(sizes)}


def _trains(name, trainable):
    """Whether a row's `trainable` admits the backbone's layer of this name."""
    if trainable == "head" or name.startswith("whitening"):
        return False
    return trainable == "all" or name.startswith(trainable)
