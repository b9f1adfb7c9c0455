"""Where a backbone's weights come from, and how they are loaded into it."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np

from cifar_keras.config import ConfigError
from cifar_keras.models.zoo import ModelSpec, backbone_layers, part_of
from cifar_keras.utils.files import sha256
from cifar_keras.utils.paths import StrPath, keras_cache, search_paths


@dataclass(frozen=True)
class Published:
    """A published file of weights."""

    url: str
    checksum: str  # MD5 or SHA-256 in hex digits, as the publisher states it
    name: str  # the file name that is searched for and cached

    @property
    def algorithm(self) -> str:
        """The checksum's algorithm, by its name in hashlib."""
        return {32: "md5", 64: "sha256"}[len(self.checksum)]


IMAGENET = {
    "resnet50": Published(
        "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "4d473c1dd8becc155b73f8504c6f6626",  # in keras.applications
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    # torchvision's IMAGENET1K_V1, as timm publishes it: safetensors holds numbers alone, a .pth is a pickle.
    "resnet18": Published(
        "https://huggingface.co/timm/resnet18.tv_in1k/resolve/a987fd6b60f845221bfff84b6f0191273ba56ead/"
        "model.safetensors",
        "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",  # on the file's page
        "resnet18.tv_in1k.safetensors",
    ),
}

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
            "`--weights` must be imagenet, none or a file (.h5, .keras, .safetensors). "
            f"Received: {asked!r}, no such file."
        )
    name = path.name.removesuffix(path.suffix).removesuffix(".model")
    return f"{name[:NAME_LENGTH]}-{sha256(path)[:6]}", path


def imagenet(backbone: str, *, data_dir: StrPath | None) -> Path:
    """The file of ImageNet weights, downloaded into the Keras cache if it is not found.

    Raises: ConfigError if the backbone has none, or if there is neither a file nor a network.
    """
    if backbone not in IMAGENET:
        raise ConfigError(
            f"There are no ImageNet weights for {backbone}; there are for {', '.join(IMAGENET)}. "
            "Use `--weights none`, or the path of a saved model with the same backbone."
        )
    file = IMAGENET[backbone]
    if path := find_imagenet(backbone, data_dir=data_dir):
        return checked(path, file)  # Keras itself would delete a file with another checksum
    try:
        return Path(keras.utils.get_file(file.name, file.url, cache_subdir="models", file_hash=file.checksum))
    except Exception as error:  # Keras raises a bare Exception without network
        raise ConfigError(
            f"The ImageNet weights of {backbone} were not found and could not be downloaded ({error}). "
            f"Put the file from {file.url} ({file.algorithm.upper()} {file.checksum}), named {file.name}, into "
            f"{keras_cache('models')}, into `--data-dir DIR` or into the folder that CIFAR_KERAS_DATA names. "
            "Without it: `--weights none` (random weights), or `--weights FILE` "
            "(any model saved here with this backbone)."
        ) from None


def find_imagenet(backbone: str, *, data_dir: StrPath | None) -> Path | None:
    """The first file of ImageNet weights in the searched folders, unchecked; None if there is none."""
    paths = (folder / IMAGENET[backbone].name for folder in search_paths(data_dir, "models"))
    return next((path for path in paths if path.is_file()), None)


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


def load_backbone(model: keras.Model, path: Path) -> None:
    """Copies the backbone's weights from a file into a model; the head keeps its initial weights.

    Args:
        model: from `zoo.build`.
        path: a Keras `..._notop.h5`, an `.h5` with a model or only its weights, a `.keras` saved by this project, or
            a torchvision ResNet's `.safetensors`.
    Raises: ConfigError that names the first layer that differs.
    """
    stored = READERS.get(path.suffix, _from_h5)(path)
    wanted = backbone_layers(model)
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
    return {name: arrays for name, arrays in found.items() if arrays}


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
    """Converts a torchvision ResNet's weights to those of `blocks.resnet18`: names and order of axes.

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
        if tensors[name].ndim == 4:
            found[ours] = [tensors[name].transpose(2, 3, 1, 0)]
        else:
            found[ours] = [tensors[f"{module}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
    return found


READERS = {".keras": _from_keras, ".safetensors": _from_safetensors}
