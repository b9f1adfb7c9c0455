"""Opening a model's file in any format: `.keras`, `.h5`, `.onnx`, `.tflite`. What comes out looks the same."""

import dataclasses
import functools
import importlib
import json
import math
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cifar_keras.config import ConfigError
from cifar_keras.data.images import MAX_PIXELS
from cifar_keras.saved import artifacts
from cifar_keras.saved.safe_loading import MAX_VALUES
from cifar_keras.utils.paths import StrPath
from cifar_keras.utils.runtime import silent
from cifar_keras.utils.system import cores

CUSTOM, ARCHITECTURE = "_custom.h5", "_architecture.json"
EXTRAS = {"onnxruntime": "onnx", "tf2onnx": "onnx", "ai_edge_litert.interpreter": "litert"}
NOTE = {"class_names": list, "config": dict, "contract": str}  # the entries of a file's provenance that are used
MAX_ONNX_BYTES = 64 * 4 * MAX_VALUES  # that onnxruntime may allocate for its layers' outputs: 64 images in float32
DTYPES = ("uint8", "float32")
FLOATS = ("float16", "float32", "float64")  # of inputs; all take float32, which is cast
ONNX_TYPES = {
    "tensor(uint8)": "uint8", "tensor(float16)": "float16", "tensor(float)": "float32", "tensor(double)": "float64",
}  # fmt: skip
CHANNELS = (1, 3)  # grey, RGB
MAX_BATCH = 256  # the largest fixed batch size of a file
SCALING = (keras.layers.Rescaling, keras.layers.Normalization)
MIN_DIVISOR = 10  # of pixels in [0, 255]: their standard deviation is around 60, that of pixels in [0, 1] below 1


@dataclass(frozen=True)
class Quantised:
    """How 8-bit integers stand for real numbers: `scale * (integer - zero)`.

    Attributes:
        dtype: of the integers, 'uint8' or 'int8'.
        scale: the step between two of them, above 0.
        zero: the integer that stands for 0.
    """

    dtype: str
    scale: float
    zero: int

    @property
    def ends(self):
        """The lowest and the highest real number in their range."""
        limits = np.iinfo(self.dtype)
        return self.scale * (limits.min - self.zero), self.scale * (limits.max - self.zero)

    def real(self, integers: Any) -> np.ndarray:
        """The real numbers, float32, of an array of integers."""
        return np.float32(self.scale) * (np.asarray(integers, "float32") - self.zero)

    def integers(self, values: np.ndarray) -> np.ndarray:
        """The integers for an array: the nearest ones to real numbers; uint8 pixels shifted to start at the lowest."""
        limits = np.iinfo(self.dtype)
        if values.dtype == np.uint8:
            return (values.astype("int16") + limits.min).astype(self.dtype)
        return np.clip(np.rint(values / self.scale + self.zero), limits.min, limits.max).astype(self.dtype)


@dataclass(frozen=True)
class Network:
    """A model that classifies images, opened.

    Attributes:
        path: of its file; of its weights where the architecture is in another file.
        provenance: the facts that the file states; None for one from elsewhere.
        size: `(height, width)` of the images it takes, None where any will do.
        dtype: of the images, 'uint8' or 'float32'. Quantised inputs take both: pixels as they are, or real numbers.
        outputs: how many numbers it puts out for an image; 1 where one number decides between two classes.
        run: takes images `(n, height, width, channels)` of that size and dtype, returns float32 `(n, outputs)`.
        model: the `keras.Model`; None in the other formats.
        written_by: the program and its version; empty where the file does not state it.
        channels: 3 for RGB, 1 for grey.
        channels_first: whether the file itself takes `(n, channels, height, width)`; `run` transposes.
        batch: the file's batch size where it is fixed; `run` takes any number of images.
        activation: the last one's name, such as 'softmax', 'sigmoid' or 'linear'; None where it is unknown.
        quantised: how the input's integers stand for real numbers; None where it is not quantised.
        quantised_output: the same of the output.
        architecture: path of the `.json`, where there is one.
    """

    path: Path
    provenance: dict | None
    size: tuple[int, int] | None
    dtype: str
    outputs: int
    run: Callable
    model: keras.Model | None = None
    written_by: str = ""
    channels: int = 3
    channels_first: bool = False
    batch: int | None = None
    activation: str | None = None
    quantised: Quantised | None = None
    quantised_output: Quantised | None = None
    architecture: Path | None = None

    @property
    def holds_scaling(self) -> bool:
        """Whether the model scales pixels before its first kernel, in nested models too.

        Later scaling does not count, such as a `Rescaling` of logits by a temperature.
        """
        graph = graph_of(self.model) if self.model else None
        return graph is not None and _scales_first(graph)[0]


def graph_of(layer):
    """The graph of calls of a functional or sequential model; None for anything else."""
    if isinstance(layer, keras.Sequential):
        return layer._functional
    return layer if isinstance(layer, keras.Function) else None


def _scales_first(graph):
    """Whether a graph scales its input before any kernel, and whether there is no kernel before its outputs."""
    before, scales = {id(tensor) for tensor in graph.inputs}, False  # tensors that no kernel has touched
    for _, nodes in sorted(graph._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            if node.is_input or not all(id(tensor) in before for tensor in node.input_tensors):
                continue
            found, passes = _scales(node)
            scales = scales or found
            if passes:
                before.update(map(id, node.output_tensors))
    return scales, all(id(tensor) in before for tensor in graph.outputs)


def _scales(node):
    """Whether one call of a layer or an operation scales its input, and whether it has no kernel."""
    operation = node.operation
    if (graph := graph_of(operation)) is not None:
        return _scales_first(graph)
    if not isinstance(operation, keras.Layer):
        return _shrinks(operation, node.arguments), True
    if any(len(weight.shape) > 1 for weight in operation.weights):  # frozen ones too
        return False, False
    return any(isinstance(layer, SCALING) for layer in operation._flatten_layers()), True


def _shrinks(operation, arguments):
    """Whether an operation divides by a constant large enough for pixels in [0, 255].

    `2 * x - 1` and `(x - 0.5) / 0.5` are for pixels that are in [0, 1] already.
    """
    kind, (first, second) = type(operation).__name__, (*arguments.args, None, None)[:2]
    if kind == "Multiply" and isinstance(second, keras.KerasTensor):
        first, second = second, first
    if kind not in ("Divide", "TrueDivide", "Multiply") or second is None or isinstance(second, keras.KerasTensor):
        return False
    size = np.abs(np.asarray(second, "float32"))
    return bool((size <= 1 / MIN_DIVISOR).all() if kind == "Multiply" else (size >= MIN_DIVISOR).all())


def open_network(path: StrPath, weights: StrPath | None = None) -> Network:
    """Opens a model's file; for a `_custom.h5` with weights only, also the `_architecture.json` beside it.

    Args:
        path: of the file, or of a `.json` with only the architecture.
        weights: path of the weights that belong to the `.json`; None for other files.
    Returns: `Network`; its `run` raises ConfigError where the file turns out to be damaged.
    Raises: ConfigError where the file is missing or damaged, would run code, or holds no classifier of images; where a
        `.json` comes without weights, or another file with them.
    """
    artifacts.refuse_saved_model(Path(path))
    path, opener = Path(path), _opener(Path(path), weights)
    path = path if weights is None else Path(weights)
    with artifacts.reading(path):
        network = opener(path)
        _check_note(network.provenance)

    def run(images):
        with artifacts.using(path):  # some damage shows only now
            return _run(network, images)

    return dataclasses.replace(network, run=run)


def _opener(path, weights):
    """What opens this file. Raises ConfigError where nothing does."""
    if path.suffix.lower() == ".json" and weights is not None:
        return functools.partial(_keras, architecture=path)
    if path.suffix.lower() == ".json":
        raise ConfigError(
            f"{path} holds only an architecture, so its weights must be named after it. Received: none. "
            f"Give both: {path.name} WEIGHTS.h5."
        )
    if path.suffix.lower() not in OPENERS:
        raise ConfigError(
            f"The model must be a file that ends in {', '.join(OPENERS)}, a .json and its weights, or a run id. "
            f"Received: {str(path)!r}."
        )
    if weights is not None:
        raise ConfigError(f"Weights go with an architecture that ends in .json. Received: {path.name} and {weights}.")
    return OPENERS[path.suffix.lower()]


def _run(network, images):
    """The file's own output, as float32 `(n, outputs)`, for images as `Network.run` takes them."""
    if network.quantised:
        images = network.quantised.integers(images)
    if network.channels_first:
        images = np.ascontiguousarray(np.moveaxis(images, 3, 1))
    if network.batch is None:
        scores = network.run(images)
    else:  # the last image fills up a last block that is too small
        missing = -len(images) % network.batch
        blocks = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)], "edge").reshape(
            -1, network.batch, *images.shape[1:]
        )
        scores = np.concatenate([network.run(block) for block in blocks])[: len(images)]
    return network.quantised_output.real(scores) if network.quantised_output else np.asarray(scores, "float32")


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


def _keras(path, architecture=None):
    beside = path.with_name(path.name.removesuffix(CUSTOM) + ARCHITECTURE)
    if architecture is None and path.name.endswith(CUSTOM) and beside.is_file():
        architecture = beside
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "When providing `inputs` as a dict")  # `_plain` removes it
        if architecture is None:
            model = artifacts.load(path)
        else:
            with artifacts.reading(architecture):
                model = artifacts.rebuild(architecture, path)
    inside, outside = _ends(model.inputs, model.outputs)
    model = _plain(model)

    def run(images):
        return np.asarray(model.predict_on_batch(images), "float32")

    facts = _facts(inside.shape, outside.shape, "uint8" if inside.dtype == "uint8" else "float32")
    if facts["channels_first"]:
        raise _no_classifier(f"an input {tuple(inside.shape)}: channels first, which TensorFlow has for GPUs alone")
    facts |= {"activation": _last_activation(model), "architecture": architecture, "model": model}
    return Network(
        path, artifacts.provenance(path), run=run, written_by=artifacts.written_by(path, architecture), **facts
    )


def _plain(model):
    """The same model taking and returning tensors, where they are in a dict or a list."""
    if not isinstance(model, keras.Function):
        return model
    if all(isinstance(one, keras.KerasTensor) for one in (model._inputs_struct, model._outputs_struct)):
        return model
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _last_activation(model):
    """The name of a model's last activation; None where its last layer has none."""
    layer = model.outputs[0]._keras_history.operation
    if isinstance(layer, keras.Model):
        return _last_activation(layer)
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    return getattr(getattr(layer, "activation", None), "__name__", None)


def _onnx(path):
    onnxruntime = imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = cores(), 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    arena = onnxruntime.OrtArenaCfg({"max_mem": MAX_ONNX_BYTES})
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", *kind), arena)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    inside, outside = _ends(session.get_inputs(), session.get_outputs())
    _check_output(outside.type.removeprefix("tensor(").removesuffix(")"))
    dtype = ONNX_TYPES.get(inside.type, inside.type)

    def run(images):
        return session.run(None, {inside.name: images.astype(dtype, copy=False)})[0]

    meta = session.get_modelmeta()
    note = json.loads(meta.custom_metadata_map.get(artifacts.ATTRIBUTE, "null"))
    facts = _facts(inside.shape, outside.shape, dtype)
    return Network(path, note, run=run, written_by=meta.producer_name, **facts)


def _litert(path):
    with silent():
        interpreter = imported("ai_edge_litert.interpreter").Interpreter(model_path=str(path), num_threads=cores())
    inside, outside = _ends(interpreter.get_input_details(), interpreter.get_output_details())
    _check_tensors(interpreter)
    with silent():
        interpreter.allocate_tensors()
    _check_tensors(interpreter)  # the actual shapes, which may differ from the stated ones
    state = {"batch": None}

    def run(images):
        if len(images) != state["batch"]:
            interpreter.resize_tensor_input(inside["index"], images.shape)
            with silent():
                interpreter.allocate_tensors()
            state["batch"] = len(images)
        interpreter.set_tensor(inside["index"], images.astype(inside["dtype"], copy=False))
        interpreter.invoke()
        return interpreter.get_tensor(outside["index"])

    shapes = [[None if side == -1 else int(side) for side in end["shape_signature"]] for end in (inside, outside)]
    quantised, quantised_output = _quantised(inside), _quantised(outside)
    if quantised_output is None:
        _check_output(np.dtype(outside["dtype"]).name)
    facts = _facts(*shapes, "uint8" if quantised else np.dtype(inside["dtype"]).name)
    facts |= {"quantised": quantised, "quantised_output": quantised_output}
    note = artifacts.provenance(path) if zipfile.is_zipfile(path) else None  # in upper case too
    return Network(path, note, run=run, **facts)


def _quantised(end):
    """The `Quantised` of one of LiteRT's inputs or outputs, or None. Raises ConfigError for a scale of 0 or less."""
    (scale, zero), dtype = end["quantization"], np.dtype(end["dtype"]).name
    if dtype not in ("uint8", "int8") or scale == 0:
        return None
    if not 0 < scale < math.inf:
        raise ConfigError(f"A quantised input or output must have a scale above 0. Received: {scale}.")
    return Quantised(dtype, float(scale), int(zero))


def _check_output(dtype):
    """Raises: ConfigError for an output of integers that stand for no real numbers."""
    if dtype.startswith(("int", "uint", "bool")):
        raise ConfigError(
            f"The model must put out floating-point numbers, one for each class. Received: {dtype}, which holds class "
            "numbers, not probabilities. Export the model without its ArgMax."
        )


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


def _facts(inside, outside, dtype):
    """The attributes of `Network` that follow from shapes and dtype, by name.

    Args:
        inside: shape of the input; any other value than an int is a side of any length.
        outside: shape of the output.
        dtype: of the input.
    Raises: ConfigError where they are not those of a classifier of images.
    """
    inside, outside = ([side if isinstance(side, int) else None for side in shape] for shape in (inside, outside))
    first = len(inside) == 4 and inside[1] in CHANNELS and inside[3] not in CHANNELS
    if len(inside) != 4 or inside[1 if first else 3] not in CHANNELS or dtype not in (*DTYPES, *FLOATS):
        raise _no_classifier(f"an input {tuple(inside)} of {dtype}")
    if len(outside) != 2 or not outside[1]:
        raise _no_classifier(f"an output {tuple(outside)}")
    batch, (channels, height, width) = inside[0], inside[1:] if first else (inside[3], *inside[1:3])
    size = None if height is None or width is None else (height, width)
    if size and not 0 < height * width <= MAX_PIXELS:
        raise _no_classifier(f"an input of {height} x {width} pixels")
    if batch is not None and not 0 < batch <= MAX_BATCH:
        raise _no_classifier(f"an input of {batch} images at a time, at most {MAX_BATCH} are allowed")
    return {
        "size": size, "dtype": "float32" if dtype in FLOATS else dtype, "outputs": outside[1], "channels": channels,
        "channels_first": first, "batch": batch,
    }  # fmt: skip


def _ends(inputs, outputs):
    """The only input and the only output. Raises ConfigError where there are more."""
    if len(inputs) != 1 or len(outputs) != 1:
        raise _no_classifier(f"{len(inputs)} inputs and {len(outputs)} outputs")
    return inputs[0], outputs[0]


def _no_classifier(received):
    return ConfigError(
        "The model must take images (batch, height, width, 3), or 1 where they are grey, and put out a number for each "
        f"class (one number for two classes). Received: {received}."
    )


OPENERS = {".keras": _keras, ".h5": _keras, ".hdf5": _keras, ".onnx": _onnx, ".tflite": _litert}
