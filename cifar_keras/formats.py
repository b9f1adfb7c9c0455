"""Opening a model's file in any format: `.keras`, `.h5`, `.onnx`, `.tflite`. What comes out looks the same."""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from cifar_keras import artifacts
from cifar_keras.config import ConfigError
from cifar_keras.foreign import MAX_VALUES
from cifar_keras.images import MAX_PIXELS
from cifar_keras.runtime import cores, silent

CUSTOM, ARCHITECTURE = "_custom.h5", "_architecture.json"
EXTRAS = {"onnxruntime": "onnx", "tf2onnx": "onnx", "ai_edge_litert.interpreter": "litert"}
NOTE = {"class_names": list, "config": dict, "contract": str}  # what is read of a file's provenance
MAX_BYTES = 64 * 4 * MAX_VALUES  # that onnxruntime may take for what its layers put out: of 64 images, in float32
DTYPES = ("uint8", "float32")
SCALING = (keras.layers.Rescaling, keras.layers.Normalization)


@dataclass(frozen=True)
class Network:
    """A model that classifies images, opened.

    Attributes:
        path: of its file.
        provenance: what the file says of itself; None for one from elsewhere.
        size: `(height, width)` of the images it takes, None where any will do.
        dtype: of the images, 'uint8' or 'float32'.
        outputs: how many numbers it puts out for an image.
        run: takes images `(n, height, width, 3)` of that size and dtype, returns float32 `(n, outputs)`.
        model: the `keras.Model`; None in the other formats.
        written_by: the program and its version; empty where the file does not say.
    """

    path: Path
    provenance: dict | None
    size: tuple[int, int] | None
    dtype: str
    outputs: int
    run: Callable
    model: keras.Model | None = None
    written_by: str = ""

    @property
    def holds_scaling(self):
        """Whether the model has layers that scale pixels, as one from elsewhere may."""
        return any(isinstance(layer, SCALING) for layer in (self.model.layers if self.model else ()))


def open_network(path):
    """Opens a model's file; a weights-alone `_custom.h5` with the `_architecture.json` beside it.

    Returns: `Network`; its `run` raises ConfigError where the file turns out to be damaged.
    Raises: ConfigError where the file is none, is damaged, would run code, or holds no classifier of RGB images.
    """
    path = Path(path)
    artifacts.refuse_saved_model(path)
    if path.suffix not in OPENERS:
        raise ConfigError(
            f"The model must be a file that ends in {', '.join(OPENERS)}, or a run id. Received: {str(path)!r}."
        )
    with artifacts.reading(path):
        network = OPENERS[path.suffix](path)
        _check_note(network.provenance)

    def run(images):
        with artifacts.using(path):  # some damage shows no sooner
            return network.run(images)

    return dataclasses.replace(network, run=run)


def imported(module):
    """An optional package.

    Raises: ConfigError saying how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS[module]
        raise ConfigError(
            f"This format needs the package {module.partition('.')[0]}. Received: an environment without it ({error}). "
            f"Install it: pip install -e '.[{extra}]'."
        ) from None


def _keras(path):
    architecture = path.with_name(path.name.removesuffix(CUSTOM) + ARCHITECTURE)
    apart = path.name.endswith(CUSTOM) and architecture.is_file()
    model = artifacts.rebuild(architecture, path) if apart else artifacts.load(path)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise _no_classifier(f"{len(model.inputs)} inputs and {len(model.outputs)} outputs")
    (inside,), (outside,) = model.inputs, model.outputs
    dtype = "uint8" if inside.dtype == "uint8" else "float32"

    def run(images):
        return np.asarray(model.predict_on_batch(images), "float32")

    sized = _sized(inside.shape, outside.shape, dtype)
    return Network(path, artifacts.provenance(path), *sized, run, model, artifacts.written_by(path))


def _onnx(path):
    onnxruntime = imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = cores(), 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    arena = onnxruntime.OrtArenaCfg({"max_mem": MAX_BYTES})
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", *kind), arena)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise _no_classifier(f"{len(session.get_inputs())} inputs and {len(session.get_outputs())} outputs")
    (inside,), (outside,) = session.get_inputs(), session.get_outputs()
    dtype = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}.get(inside.type, inside.type)

    def run(images):
        return session.run(None, {inside.name: images})[0]

    meta = session.get_modelmeta()
    note = json.loads(meta.custom_metadata_map.get(artifacts.ATTRIBUTE, "null"))
    return Network(path, note, *_sized(inside.shape, outside.shape, dtype), run, written_by=meta.producer_name)


def _litert(path):
    with silent():
        interpreter = imported("ai_edge_litert.interpreter").Interpreter(model_path=str(path), num_threads=cores())
    if len(interpreter.get_input_details()) != 1 or len(interpreter.get_output_details()) != 1:
        raise _no_classifier("several inputs or outputs")
    (inside,), (outside,) = interpreter.get_input_details(), interpreter.get_output_details()
    _check_tensors(interpreter)
    with silent():
        interpreter.allocate_tensors()
    _check_tensors(interpreter)  # the shapes that it came to, whatever the file said
    state = {"batch": None}

    def run(images):
        if len(images) != state["batch"]:
            interpreter.resize_tensor_input(inside["index"], images.shape)
            with silent():
                interpreter.allocate_tensors()
            state["batch"] = len(images)
        interpreter.set_tensor(inside["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(outside["index"])

    shapes = [[None if side == -1 else int(side) for side in end["shape_signature"]] for end in (inside, outside)]
    return Network(path, artifacts.provenance(path), *_sized(*shapes, np.dtype(inside["dtype"]).name), run)


def _check_tensors(interpreter):
    if (most := max(math.prod(map(int, one["shape"])) for one in interpreter.get_tensor_details())) > MAX_VALUES:
        raise ConfigError(f"A layer must put out at most {MAX_VALUES:,} values for an image. Received: {most:,}.")


def _check_note(note):
    """Raises: ConfigError for provenance that is not as this project writes it."""
    if note is None:
        return
    if not isinstance(note, dict):
        raise ConfigError(f"Its provenance must be an object. Received: {type(note).__name__}.")
    for name, kind in NOTE.items():
        if not isinstance(value := note.get(name, kind()), kind):
            raise ConfigError(f"Its provenance must hold {name} as {kind.__name__}. Received: {type(value).__name__}.")
    if not all(isinstance(name, str) for name in note.get("class_names", ())):
        raise ConfigError("Its provenance must name classes in words. Received: something else.")


def _sized(inside, outside, dtype):
    """`(size, dtype, outputs)` of a classifier of RGB images; what is no number in a shape is a side of any length.

    Raises: ConfigError for anything else.
    """
    inside, outside = ([side if isinstance(side, int) else None for side in shape] for shape in (inside, outside))
    if len(inside) != 4 or inside[3] != 3 or dtype not in DTYPES:
        raise _no_classifier(f"an input {tuple(inside)} of {dtype}")
    if len(outside) != 2 or outside[1] is None or outside[1] < 2:
        raise _no_classifier(f"an output {tuple(outside)}")
    height, width = inside[1:3]
    if height is None or width is None:
        return None, dtype, outside[1]
    if not 0 < height * width <= MAX_PIXELS:
        raise _no_classifier(f"an input of {height} x {width} pixels")
    return (height, width), dtype, outside[1]


def _no_classifier(received):
    return ConfigError(
        "The model must take RGB images (batch, height, width, 3) and put out a number for each of two classes or more."
        f" Received: {received}."
    )


OPENERS = {".keras": _keras, ".h5": _keras, ".hdf5": _keras, ".onnx": _onnx, ".tflite": _litert}
