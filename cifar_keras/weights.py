"""Where a backbone's weights come from, and how they enter it."""

import hashlib
from pathlib import Path

import h5py
import keras
import numpy as np

from cifar_keras.config import ConfigError
from cifar_keras.files import sha256
from cifar_keras.paths import keras_cache, places
from cifar_keras.zoo import backbone_layers, part_of

IMAGENET = {
    "resnet50": (
        "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "4d473c1dd8becc155b73f8504c6f6626",  # MD5, as published in keras.applications
    )
}


def resolve(asked, row, *, data_dir):
    """Finds the weights that a run starts from, before anything is built.

    Args:
        asked: 'imagenet', 'none', a path, or None for what the row calls for.
        row: `zoo.ModelRow`.
        data_dir: searched first, may be None.
    Returns: `(name, path)`: the name for tables and file names, and the file or None.
    Raises: ConfigError if the file is missing, or ImageNet weights don't exist or can't be had.
    """
    asked = asked or row.weights
    if asked == "none":
        return "none", None
    if asked == "imagenet":
        return "imagenet", imagenet(row.backbone, data_dir=data_dir)
    path = Path(asked).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"`--weights` must be imagenet, none or a file (.h5, .keras). Received: {asked!r}, no such file."
        )
    name = path.name.removesuffix(path.suffix).removesuffix(".model")
    return f"{name}-{sha256(path)[:6]}", path


def imagenet(backbone, *, data_dir):
    """The ImageNet weights' file, downloaded into the Keras cache if it is nowhere.

    Raises: ConfigError if the backbone has none, or there is neither file nor network.
    """
    if backbone not in IMAGENET:
        raise ConfigError(
            f"There are no ImageNet weights for {backbone}; there are for {', '.join(IMAGENET)}. "
            "Use `--weights none`, or the path of a saved model with the same backbone."
        )
    url, md5 = IMAGENET[backbone]
    if path := find_imagenet(backbone, data_dir=data_dir):
        return checked(path, md5)  # Keras itself would delete a file with another checksum
    try:
        return Path(keras.utils.get_file(imagenet_file(backbone), url, cache_subdir="models", file_hash=md5))
    except Exception as error:  # Keras raises a bare Exception without network
        raise ConfigError(
            f"The ImageNet weights of {backbone} are neither here nor can they be downloaded ({error}). "
            f"Put the file from {url} (MD5 {md5}) into {keras_cache('models')}, into `--data-dir DIR` or into the "
            "folder that CIFAR_KERAS_DATA names. Without it: `--weights none` (random weights), or `--weights FILE` "
            "(any model saved here with this backbone)."
        ) from None


def imagenet_file(backbone):
    """The published name of a backbone's ImageNet weights."""
    return IMAGENET[backbone][0].rpartition("/")[2]


def find_imagenet(backbone, *, data_dir):
    """The first file of that name among the places, unchecked, or None."""
    paths = (folder / imagenet_file(backbone) for folder in places(data_dir, "models"))
    return next((path for path in paths if path.is_file()), None)


def checked(path, md5):
    """Returns the path of a file with this MD5.

    Raises: ConfigError if it has another.
    """
    with open(path, "rb") as file:
        received = hashlib.file_digest(file, "md5").hexdigest()
    if received != md5:
        raise ConfigError(f"{path} must be the published file, MD5 {md5}. Received: {received}. Get it anew.")
    return path


def load_backbone(model, path):
    """Copies the backbone's weights from a file into a model; the head stays as it was initialised.

    Args:
        model: from `zoo.build`.
        path: a Keras `..._notop.h5`, a complete or weights-alone `.h5`, or a `.keras` saved by this project.
    Raises: ConfigError naming the first layer that differs.
    """
    stored = _from_keras(path) if path.suffix == ".keras" else _from_h5(path)
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
    """The weights by layer name of an `.h5`, complete or weights alone (Keras 2 and 3 lay them out alike)."""
    try:
        with h5py.File(path) as file:
            group = file.get("model_weights", file)
            names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs["layer_names"]]
            found = {name: [np.asarray(group[name][w]) for w in group[name].attrs["weight_names"]] for name in names}
    except (OSError, KeyError) as error:
        raise ConfigError(f"{path} can't be read as an .h5 with Keras weights: {error}") from None
    return {name: arrays for name, arrays in found.items() if arrays}
