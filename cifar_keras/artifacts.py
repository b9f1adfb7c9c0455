"""Saves and loads models: the only module that knows what stands in `model_cp/` and `Models/`.

Every saved model takes RGB in [0, 255] (uint8) at its dataset's image size and returns float32 probabilities. Each
file carries its provenance (class names, run id, this contract): the `.keras` as an extra member of the zip, the
`.h5` as an attribute. Keras reads the files without this package and ignores both.
"""

import json
import zipfile

import h5py
import keras
from keras import layers

from cifar_keras.files import replacing, write_json, write_text

MEMBER = "provenance.json"
ATTRIBUTE = "provenance"
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
    """Loads a saved model for inference: a `.keras` or a complete `.h5`."""
    return keras.saving.load_model(path, compile=False)


def rebuild(architecture, weights):
    """Loads a model from its architecture JSON and its weights-alone `.h5`."""
    model = keras.models.model_from_json(architecture.read_text(encoding="utf-8"))
    model.load_weights(weights)
    return model


def provenance(path):
    """What a file of this project says of itself, or None for a file from elsewhere."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(MEMBER)) if MEMBER in archive.namelist() else None
    with h5py.File(path) as file:
        return json.loads(file.attrs[ATTRIBUTE]) if ATTRIBUTE in file.attrs else None
