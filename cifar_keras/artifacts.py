"""Saves and loads models: the only module that knows what stands in `model_cp/` and `Models/`.

Every saved model takes RGB in [0, 255] (uint8) at its dataset's image size and returns float32 probabilities. Each
file carries its provenance (class names, run id, this contract): the `.keras` as an extra member of the zip, the
`.h5` as an attribute. Keras reads the files without this package and ignores both.
"""

import contextlib
import io
import json
import zipfile
from pathlib import Path

import h5py
import keras
from keras import layers

from cifar_keras import foreign
from cifar_keras.config import ConfigError
from cifar_keras.files import replacing, write_json, write_text

MEMBER, WEIGHTS = "provenance.json", "model.weights.h5"  # of a `.keras`; the second is Keras' own
ATTRIBUTE = "provenance"
MAX_EXPANSION = 10  # times its size that an archive may unpack to; weights hardly compress
CONTRACT = "input: RGB in [0, 255], uint8 (batch, height, width, 3); output: float32 probabilities (batch, classes)"


def for_inference(model):
    """The same layers with a softmax behind the logits: float32 under every precision policy, flat, uncompiled."""
    probabilities = layers.Softmax(dtype="float32", name="probabilities")(model.output)
    return keras.Model(model.input, probabilities, name=model.name)


def save(model, paths, *, provenance, history):
    """Writes the checkpoint, the architecture, both `.h5` and the history, each whole or not at all.

    Args:
        model: from `for_inference`, with the selected weights.
        paths: `paths.Paths` of the run.
        provenance: JSON-able facts that go inside the files; `contract` is added.
        history: lists by name, one entry an epoch.
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
    """Copies the weights of a complete `.h5` to a file of their own, which `load_weights` takes.

    A `.weights.h5` under another name would not do: `load_weights` then reads it by the other layout.
    """
    with h5py.File(complete) as source, h5py.File(path, "w") as target:
        weights = source["model_weights"]
        for name in weights:
            source.copy(weights[name], target, name)
        for name, value in weights.attrs.items():
            target.attrs[name] = value
        target.attrs[ATTRIBUTE] = source.attrs[ATTRIBUTE]


def load(path):
    """Loads a saved model for inference: a `.keras`, or a complete `.h5` of Keras 2 or 3. No stored code is run.

    Raises: ConfigError where the file is none, is damaged, or holds what `foreign.checked` refuses.
    """
    path = Path(path)
    with reading(path):
        if path.suffix == ".keras":
            foreign.checked(config := json.loads(_member(path, "config.json")))
            foreign.check_size(config, path.stat().st_size)
            with h5py.File(io.BytesIO(_member(path, WEIGHTS))) as file:
                _check_datasets(file, path.stat().st_size)
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        with h5py.File(path) as file:
            description = file.attrs.get("model_config")
        if description is None:
            raise ConfigError("A complete model must hold its architecture. Received: weights alone.")
        return _with_weights(description, path)


def rebuild(architecture, weights):
    """Loads a model from its architecture JSON and its weights-alone `.h5`.

    Raises: as `load`.
    """
    with reading(weights):
        return _with_weights(architecture.read_text(encoding="utf-8"), weights)


def _with_weights(description, path):
    """The model of a description, with the weights in a `.h5`: by name, since Keras 2 and 3 may order layers apart."""
    with h5py.File(path) as file:
        _check_datasets(file, path.stat().st_size)
    config = foreign.to_keras3(json.loads(description))
    foreign.check_size(config, path.stat().st_size)
    model = foreign.build(config)
    model.load_weights(path, by_name=True)
    with h5py.File(path) as file:
        stored = _layers_with_weights(file.get("model_weights", file))
    if stored != (needed := {layer.name for layer in model.layers if layer.weights}):
        raise ConfigError(
            f"The weights must be those of the architecture's layers. Received: {len(stored)} layers' for "
            f"{len(needed)}; first difference: {min(stored ^ needed)!r}."
        )
    return model


def _check_datasets(file, stored_bytes):
    """Refuses weights that stand in other files, or that claim to be far larger than their own.

    Raises: ConfigError for one of these.
    """
    found = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    if elsewhere := [item.name for item in found if item.external or item.is_virtual]:
        raise ConfigError(f"The weights must stand in the file itself. Received: {elsewhere[0]!r}, which does not.")
    claimed, most = sum((item.size or 0) * item.dtype.itemsize for item in found), MAX_EXPANSION * stored_bytes
    if claimed > most:
        raise ConfigError(f"The weights must unpack to at most {most:,} bytes. Received: {claimed:,}.")


def _layers_with_weights(group):
    """The names of the layers that have weights in a `.h5`; a long list of names is cut into several attributes."""
    names = (name for key in group.attrs if key.startswith("layer_names") for name in group.attrs[key])
    names = (name.decode() if isinstance(name, bytes) else name for name in names)
    return {name for name in names if group[name].visititems(lambda _, item: isinstance(item, h5py.Dataset) or None)}


@contextlib.contextmanager
def reading(path):
    """As `using`, for a file that is to be read."""
    if not path.is_file():
        raise ConfigError(f"The model must be a file. Received: {str(path)!r}, which is none.")
    with using(path):
        yield


@contextlib.contextmanager
def using(path):
    """Turns whatever a file that is no whole model makes its readers raise into a sentence that names the file."""
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


def provenance(path):
    """What a file of this project says of itself, or None for a file from elsewhere.

    Raises: ConfigError where the file can't be read.
    """
    with reading(path):
        if path.suffix == ".tflite" and not zipfile.is_zipfile(path):
            return None
        if path.suffix in (".keras", ".tflite"):
            return json.loads(_member(path, MEMBER) or "null")
        with h5py.File(path) as file:
            return json.loads(file.attrs[ATTRIBUTE]) if ATTRIBUTE in file.attrs else None


def written_by(path):
    """The Keras that wrote a `.keras` or `.h5`, as `Keras 3.15.1`; empty where the file does not say."""
    with reading(path):
        if path.suffix == ".keras":
            version = json.loads(_member(path, "metadata.json") or "{}").get("keras_version")
        else:
            with h5py.File(path) as file:
                version = file.get("model_weights", file).attrs.get("keras_version")
    version = version.decode() if isinstance(version, bytes) else version
    return f"Keras {version}" if version else ""


def _member(path, name):
    """A member of a model's archive, None without such a one.

    Raises: ConfigError for an archive that unpacks to far more than its own size.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked, most = sum(info.file_size for info in archive.infolist()), MAX_EXPANSION * path.stat().st_size
        if unpacked > most:
            raise ConfigError(f"The archive must unpack to at most {most:,} bytes. Received: {unpacked:,}.")
        return archive.read(name) if name in archive.namelist() else None
