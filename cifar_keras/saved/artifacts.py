"""Saves and loads models: the only module that knows the files in `model_cp/` and `Models/`.

Every saved model takes RGB in [0, 255] (uint8) at its dataset's image size and returns float32 probabilities. Each
file carries its provenance (class names, run id, this contract): the `.keras` as an extra member of the zip, the
`.h5` as an attribute. Keras reads the files without this package and ignores both.
"""

import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
from keras import layers

from cifar_keras.config import ConfigError
from cifar_keras.saved import safe_loading, stored_weights
from cifar_keras.utils.files import replacing, write_json, write_text
from cifar_keras.utils.paths import Paths, StrPath

MEMBER, CONFIG, METADATA = "provenance.json", "config.json", "metadata.json"  # of a `.keras`; the last two are Keras'
ATTRIBUTE = "provenance"
ARCHITECTURE = "The architecture must be JSON as `model.to_json()` writes it, or the `config.json` of a `.keras`."
MAX_DESCRIPTION = 2**26  # bytes; ResNet50's takes less than 2**18
HALF_PRECISION = ("float16", "bfloat16")
CONTRACT = "input: RGB in [0, 255], uint8 (batch, height, width, 3); output: float32 probabilities (batch, classes)"


def for_inference(model: keras.Model) -> keras.Model:
    """The same layers with a softmax after the logits: float32 under every precision policy, flat, uncompiled."""
    probabilities = layers.Softmax(dtype="float32", name="probabilities")(model.output)
    model = keras.Model(model.input, probabilities, name=model.name)
    if all(
        layer.dtype_policy.compute_dtype not in HALF_PRECISION for layer in model._flatten_layers(include_self=False)
    ):
        return model
    rebuilt = safe_loading.build(safe_loading.in_float32(keras.saving.serialize_keras_object(model)))
    rebuilt.set_weights(model.get_weights())
    return rebuilt


def save(model: keras.Model, paths: Paths, *, provenance: dict[str, Any], history: dict[str, list[Any]]) -> None:
    """Writes the checkpoint, the architecture, both `.h5` and the history of a run, each whole or not at all.

    Args:
        model: from `for_inference`, with the selected weights.
        paths: where to write.
        provenance: JSON-able facts to store in the files; `contract` is added.
        history: one list per metric, with one entry per epoch.
    """
    note = json.dumps({**provenance, "contract": CONTRACT})
    with replacing(paths.keras) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(MEMBER, note)
    with replacing(paths.h5) as temporary:
        model.save(temporary)
        with h5py.File(temporary, "a") as file:
            file.attrs[ATTRIBUTE] = note
    with replacing(paths.custom_h5) as temporary:
        _weights_alone(paths.h5, temporary)
    write_text(paths.architecture, model.to_json(indent=1) + "\n")
    write_json(paths.history, history)


def _weights_alone(complete, path):
    """Copies the weights of a complete `.h5` to a file of their own for `load_weights`.

    A renamed `.weights.h5` would not do: `load_weights` would read it by the other layout.
    """
    with h5py.File(complete) as source, h5py.File(path, "w") as target:
        weights = source["model_weights"]
        for name in weights:
            source.copy(weights[name], target, name)
        for name, value in weights.attrs.items():
            target.attrs[name] = value
        target.attrs[ATTRIBUTE] = source.attrs[ATTRIBUTE]


def load(path: StrPath) -> keras.Model:
    """Loads a saved model for inference, in float32, not compiled. No stored code is run.

    Args:
        path: of a `.keras` of Keras 2.13 and later, or of a complete `.h5` of Keras 2 or 3; the content decides.
    Raises: ConfigError where the file is missing or damaged, or `safe_loading.to_keras3` refuses it.
    """
    path = Path(path)
    with reading(path), _stored_weights(path) as file:
        description = _member(path, CONFIG) if zipfile.is_zipfile(path) else file.attrs.get("model_config")
        if description is None:
            raise ConfigError(
                "A complete model must hold its architecture. Received: weights alone. Save the whole model, or give "
                "the architecture with them (`model.to_json()`). The file of a subclassed model has neither: build it "
                "with `keras.Model(inputs, outputs)` in the program that defines it and save that."
            )
        return _filled(_parsed(description), file, path)


def rebuild(architecture, weights):
    """As `load`, for a model whose architecture and weights are in two files.

    Args:
        architecture: path of a JSON file: `model.to_json()` or `model.get_config()` of Keras 2 or 3, or the
            `config.json` of a `.keras`.
        weights: path of an `.h5` of Keras 2 or 3, complete or with weights alone; a `.weights.h5`; or a `.keras`.
    Raises: ConfigError as `load`, and where the weights are not the architecture's.
    """
    architecture, weights = Path(architecture), Path(weights)
    with reading(architecture):
        if (size := architecture.stat().st_size) > MAX_DESCRIPTION:
            raise ConfigError(f"An architecture must have at most {MAX_DESCRIPTION:,} bytes. Received: {size:,}.")
        config = _parsed(architecture.read_bytes())
    with reading(weights), _stored_weights(weights) as file:
        return _filled(config, file, weights)


def _parsed(text):
    """The description in a JSON text. Raises ConfigError for anything else."""
    try:
        config = json.loads(text)
        config = json.loads(config) if isinstance(config, str) else config  # `json.dump(model.to_json(), file)`
    except (ValueError, RecursionError):
        raise ConfigError(f"{ARCHITECTURE} Received: a file that is not JSON.") from None
    if isinstance(config, dict) and "class_name" not in config and isinstance(config.get("layers"), list):
        return {"class_name": "Functional" if "input_layers" in config else "Sequential", "config": config}
    if not (isinstance(config, dict) and isinstance(config.get("config"), dict | list) and "class_name" in config):
        kind = f"with {', '.join(sorted(config)[:3])}" if isinstance(config, dict) else f"of a {type(config).__name__}"
        raise ConfigError(f"{ARCHITECTURE} Received: JSON {kind}.")
    return config


def _filled(config, file, path):
    """The model of a description with the weights of a file, after all checks that need no memory."""
    config, size = safe_loading.to_keras3(config), path.stat().st_size
    stored_weights.check(file, size)
    safe_loading.check_size(config, size)
    model = safe_loading.build(config)
    stored_weights.fill(model, config, file, stored_bytes=size)
    return model


def _stored_weights(path):
    """The HDF5 file with the weights, open; in a `.keras` it is a member, but before Keras 2.12 the file itself."""
    if not zipfile.is_zipfile(path):
        return h5py.File(path)
    if (content := _member(path, stored_weights.WEIGHTS_MEMBER)) is None:
        raise ConfigError(
            f"A `.keras` must hold its weights as {stored_weights.WEIGHTS_MEMBER}. Received: one without them."
        )
    return h5py.File(io.BytesIO(content))


@contextlib.contextmanager
def reading(path):
    """As `using`, for a file that must exist."""
    refuse_saved_model(path)
    if not path.is_file():
        raise ConfigError(f"The model must be a file. Received: {str(path)!r}, which is not a file.")
    with using(path):
        yield


def refuse_saved_model(path):
    """Raises ConfigError for TensorFlow's folder, which holds a program instead of layers."""
    if (path / "saved_model.pb").is_file():
        raise ConfigError(
            f"The model must be a file. Received: {str(path)!r}, a SavedModel folder, which holds a program and no "
            "layers. Export it to ONNX: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx."
        )


@contextlib.contextmanager
def using(path):
    """Turns any error of reading or running a model's file into a sentence that names the file."""
    try:
        yield
    except ConfigError as error:
        if str(path) in str(error):
            raise
        raise ConfigError(f"{path} can't be used. {error}") from error
    except Exception as error:  # a damaged file makes h5py, zipfile, Keras and the runtimes raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 200 else f"{reason[:90]} ... {reason[-105:]}"
        raise ConfigError(
            f"{path} must be a whole saved model. Received: one that can't be loaded or run ({reason}). "
            "Save or copy it again."
        ) from error


def provenance(path: Path) -> dict[str, Any] | None:
    """The provenance stored in a file of this project, or None for a file from elsewhere."""
    with reading(path):
        if zipfile.is_zipfile(path):
            return json.loads(_member(path, MEMBER) or "null")
        if path.suffix == ".tflite":
            return None
        with h5py.File(path) as file:
            return json.loads(file.attrs[ATTRIBUTE]) if ATTRIBUTE in file.attrs else None


def written_by(path, architecture=None):
    """The Keras that wrote a `.keras` or `.h5`, as `Keras 3.15.1`; empty where no file states it.

    Args:
        path: of the file with the weights.
        architecture: path of the JSON with the architecture, if any; read where the weights don't state the version.
    """
    with reading(path):
        if zipfile.is_zipfile(path):
            version = json.loads(_member(path, METADATA) or "{}").get("keras_version")
        else:
            with h5py.File(path) as file:
                version = file.get("model_weights", file).attrs.get("keras_version")
    if version is None and architecture is not None:
        with reading(architecture):
            version = _parsed(architecture.read_bytes()).get("keras_version")
    version = version.decode() if isinstance(version, bytes) else version
    return f"Keras {version}" if version else ""


def _member(path, name):
    """A member of a model's archive, or None. Raises ConfigError for one that unpacks to far more than its size."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
        most = stored_weights.MAX_EXPANSION * path.stat().st_size
        if unpacked > most:
            raise ConfigError(f"The archive must unpack to at most {most:,} bytes. Received: {unpacked:,}.")
        return archive.read(name) if name in archive.namelist() else None
