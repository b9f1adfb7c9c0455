"""`cifar-keras export`: a saved model in another format, checked on real images before it gets its name.

Every exported model takes uint8 RGB at the model's size and returns float32 probabilities. Scaling and softmax that a
model from elsewhere lacks become part of it. Class names and provenance are stored inside.
"""

import contextlib
import gc
import json
import logging
import math
import re
import sys
import tempfile
import traceback
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from cifar_keras.config import CifarKerasError, ConfigError, RunFailedError
from cifar_keras.data import load as load_dataset
from cifar_keras.data.base import at_most
from cifar_keras.models import blocks
from cifar_keras.saved import artifacts, inference, resizing, scoring
from cifar_keras.saved.formats import imported
from cifar_keras.utils.files import replacing
from cifar_keras.utils.paths import StrPath
from cifar_keras.utils.runtime import silent
from cifar_keras.utils.text import to_stderr

CALIBRATED = 256  # training images that int8 ranges are taken from
CALIBRATED_AT_ONCE = 8  # onnxruntime keeps every layer's output meanwhile, at 224 pixels 0.2 GB per image
CHECKED, CHECKED_LARGE, LARGE = 1000, 500, 128  # validation images; fewer for models of images from this side on
NEEDED_PACKAGES = {".onnx": ("tf2onnx", "onnxruntime"), ".tflite": ("ai_edge_litert.interpreter",)}
LACKING = re.compile(r"'tf\.(\w+)' op is neither")  # how LiteRT's converter names an operation that it lacks


@dataclass(frozen=True)
class Format:
    """A format to export to.

    Attributes:
        ending: of its files.
        kind: 'float32'; 'float16': weights are stored in 16 bits and computed with in 32; 'int8': weights and
            activations are 8-bit integers.
        difference: how far a probability may lie from the original's.
        loss: how much accuracy may be lost, but always one image.
        agreement: the share of images that must get the same class where accuracy is unknown. It is no bound elsewhere:
            a model that is right on half its images has many near-ties, which may fall either way.
    """

    ending: str
    kind: str
    difference: float
    loss: float
    agreement: float

    @property
    def int8(self) -> bool:
        """Whether it computes with 8-bit integers, whose ranges must be calibrated."""
        return self.kind == "int8"

    @property
    def bounds(self) -> str:
        """What a model of this format must keep, for a message."""
        share = f"lose at most {100 * self.loss:g} points of accuracy (without labels: agree on {self.agreement:.1%} of"
        return f"{share} images), within {self.difference:g}"


FORMATS = {
    "onnx": Format(".onnx", "float32", difference=1e-3, loss=0.001, agreement=0.999),
    "onnx-int8": Format(".onnx", "int8", difference=1.0, loss=0.01, agreement=0.9),
    "litert": Format(".tflite", "float32", difference=1e-3, loss=0.001, agreement=0.999),
    "litert-float16": Format(".tflite", "float16", difference=0.05, loss=0.002, agreement=0.99),
    "litert-int8": Format(".tflite", "int8", difference=1.0, loss=0.01, agreement=0.9),
}


@dataclass(frozen=True)
class Check:
    """An exported model compared with the original on the same images.

    Attributes:
        images: how many.
        difference: the largest, of probabilities.
        agreement: share of images with the same class.
        accuracy: of the exported model and of the original; None without labels.
    """

    images: int
    difference: float
    agreement: float
    accuracy: tuple[float, float] | None

    @property
    def lost(self) -> float | None:
        """Accuracy lost by the exported model, as a share of the images; None without labels."""
        return self.accuracy and round((self.accuracy[1] - self.accuracy[0]) * self.images) / self.images

    def within(self, form: Format) -> bool:
        """Whether it stays in the bounds of a `Format`."""
        lost = self.lost
        alike = self.agreement >= form.agreement if lost is None else lost <= max(form.loss, 1 / self.images)
        return alike and self.difference <= form.difference

    def __str__(self):
        accuracy = f", accuracy {self.accuracy[0]:.2%} (original {self.accuracy[1]:.2%})" if self.accuracy else ""
        return (
            f"{self.images:,} validation images: same class {self.agreement:.2%}, largest difference of a probability "
            f"{self.difference:.1e}{accuracy}"
        )


def export(
    classifier: inference.Classifier,
    to: str,
    path: StrPath | None,
    *,
    dataset: str | None = None,
    data_dir: StrPath | None = None,
    skip_unreadable: bool = False,
    verbose: bool = False,
) -> tuple[Path, Check]:
    """Writes a model in another format, whole or not at all, after checking it on validation images.

    `to` is a key of `FORMATS`. By default, the new file lies beside the model, and the images are those of the dataset
    that it was trained on. The other options are those of `cifar-keras export`; the classifier has a `keras.Model`.

    Raises: ConfigError where the images or a package are missing; RunFailedError, with nothing written, where the
        model can't be converted, or the new one differs more than its `Format` allows.
    """
    if (model := classifier.network.model) is None:
        raise ConfigError(f"MODEL must be a .keras or .h5 file to be exported. Received: {classifier.network.path}.")
    form = FORMATS[to]
    path = Path(path) if path else _beside(classifier.network.path, form)
    if path.suffix != form.ending:
        raise ConfigError(f"`--output` must end in {form.ending} for {to}. Received: {str(path)!r}.")
    name = dataset or scoring.own_dataset(classifier)
    calibration, images, labels = real_images(classifier, name, data_dir, skip_unreadable=skip_unreadable)
    with replacing(path) as temporary:
        print(f"converting {model.name} to {to}", flush=True)
        convert(classifier, to, temporary, calibration, verbose=verbose)
        try:
            exported = inference.load(temporary)
        except ConfigError as error:
            raise _unconvertible(to, error, verbose=verbose) from error
        check = compared(classifier, exported, images, labels)
        if not check.within(form):
            raise RunFailedError(f"{to} must {form.bounds}. Received: {check}. Nothing was written.")
    return path, check


def _beside(path: Path, form: Format) -> Path:
    """Where a model is exported to by default: its own name, with the kind if it isn't float32, and another ending."""
    kind = "" if form.kind == "float32" else f"_{form.kind}"
    return path.with_name(f"{path.name.removesuffix(path.suffix)}{kind}{form.ending}")


def convert(classifier, to, path, calibration, *, verbose=False):
    """Writes a model in another format, unchecked, with its provenance, and its class names where it has any.

    int8 ranges are taken from the activations of the calibration images, uint8 at the model's size.

    Raises: ConfigError where a package is missing; RunFailedError where the converter fails in any way.
    """
    form = FORMATS[to]
    for module in NEEDED_PACKAGES[form.ending]:
        imported(module)
    note = {**classifier.provenance, "contract": artifacts.CONTRACT}
    note["exported_from"] = f"{classifier.network.path.name}, to {to}"
    try:
        with contextlib.nullcontext() if verbose else _quiet():
            half = {"half": True} if form.kind == "float16" else {}  # only LiteRT has it
            CONVERTERS[form.ending](exportable(classifier), path, calibration if form.int8 else None, note, **half)
    except (CifarKerasError, OSError):  # the second is about the file, not about the model
        raise
    except Exception as error:  # converters raise nearly anything
        raise _unconvertible(to, error, verbose=verbose) from error


@contextlib.contextmanager
def _quiet():
    """Hides what converters write to file descriptor 2, and what they log to a stream opened before."""
    logging.disable(logging.CRITICAL)
    try:
        with silent():
            yield
    finally:
        logging.disable(logging.NOTSET)


def _unconvertible(to, error, *, verbose):
    """A converter's failure in one sentence; `verbose` also prints the traceback."""
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    text = " ".join(str(error).split())
    reason = ", ".join(sorted({*LACKING.findall(text)}))
    if not reason:  # compilers put pages of their own language into a message
        reason = type(error).__name__ if not text or "loc(" in text else text[:120]
    hint = "" if verbose else " `--verbose` shows the converter's messages."
    return RunFailedError(
        f"The model must consist of operations that {to} has. Received: one that can't be converted ({reason}). "
        f"Nothing was written.{hint}"
    )


def real_images(classifier, dataset, data_dir, *, skip_unreadable=False):
    """Images at the model's size: `(calibration, validation, validation labels)`; no labels where classes differ."""
    count = CHECKED_LARGE if min(classifier.size) >= LARGE else CHECKED
    data = load_dataset(dataset, data_dir=data_dir, decoded_at=classifier.size, skip_unreadable=skip_unreadable)
    for note in data.notes:
        to_stderr(f"{data.label}: {note}")
    train, val = at_most(data.train, CALIBRATED), at_most(data.val, count)
    sized = [np.asarray(inference.at_size(split.images, classifier)) for split in (train, val)]
    return *sized, np.asarray(val.labels) if data.class_names == classifier.class_names else None


def compared(original, exported, images, labels):
    """The `Check` of two classifiers on uint8 images at their size, with labels or None."""

    def both(block):
        return [one.probabilities(block) for one in (exported, original)]

    return check_of(*inference.in_blocks(both, images, what="checking"), labels)


def check_of(new, old, labels):
    """The `Check` of an exported model's probabilities `(n, classes)` against the original's; labels int or None."""
    classes = new.argmax(axis=1), old.argmax(axis=1)
    accuracy = None if labels is None else tuple(float(np.mean(one == labels)) for one in classes)
    return Check(len(new), float(np.abs(new - old).max()), float(np.mean(classes[0] == classes[1])), accuracy)


def exportable(classifier):
    """The whole classifier as one model, from uint8 RGB to probabilities, of operations that the converters know."""
    model = keras.models.clone_model(classifier.network.model, clone_function=_exportable_layer, recursive=True)
    _copy_weights(classifier.network.model, model)
    _arrays_for_tensors(model)
    model.trainable = False  # or the graph would update BatchNorm's statistics
    if "contract" in classifier.provenance:
        return model
    inputs, x = inference.network_input(classifier, scale=_exportable_scale)
    x = model(x)
    x = inference.both(x, classifier.single) if classifier.single else x
    return keras.Model(inputs, layers.Softmax(dtype="float32")(x) if classifier.logits else x, name=model.name)


def _arrays_for_tensors(model):
    """Replaces a graph's constant tensors by arrays: ONNX would make inputs of tensors, and constants of arrays."""
    for operation in getattr(model, "operations", ()):
        for node in operation._inbound_nodes:
            held = node.arguments
            held.args, held.kwargs = keras.tree.map_structure(
                lambda one: keras.ops.convert_to_numpy(one) if keras.ops.is_tensor(one) else one,
                (held.args, held.kwargs),
            )
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _arrays_for_tensors(layer)


def _copy_weights(model, copy):
    """Copies a model's weights, nested models included, to a copy made by `_exportable_layer`."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _copy_weights(layer, copy.get_layer(layer.name))
        elif layer.weights and not isinstance(layer, layers.Normalization):
            copy.get_layer(layer.name).set_weights(layer.get_weights())


def _exportable_scale(x, scaling):
    scaled = blocks.scale(x, scaling)
    layer = scaled._keras_history.operation
    return _rescaling(layer)(x) if isinstance(layer, layers.Normalization) else scaled


def _exportable_layer(layer):
    """The same layer, in operations that a converter knows and keeps."""
    if isinstance(layer, layers.Normalization):
        return _rescaling(layer)
    if isinstance(layer, layers.Resizing) and layer.data_format == "channels_last":
        return resizing.ResizingByMatrices(layer)
    copy = type(layer).from_config(layer.get_config())
    if getattr(copy, "activation", None) is keras.activations.gelu:
        copy.activation = _gelu
    return copy


def _rescaling(layer):
    """Normalization as Rescaling: its statistics are tensors, which would become inputs of an ONNX graph."""
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance, "float64")), keras.config.epsilon())
    factor, mean = 1 / deviation.ravel(), np.asarray(layer.mean, "float64").ravel()
    return layers.Rescaling(factor.tolist(), (-mean * factor).tolist(), dtype=layer.dtype_policy, name=layer.name)


def _gelu(x):
    """GELU by the error function; TensorFlow uses its complement, which ONNX does not have."""
    return 0.5 * x * (1 + keras.ops.erf(x / math.sqrt(2)))


def _to_onnx(model, path, calibration, note):
    """Writes an ONNX file; int8 weights and activations where there are calibration images."""
    import onnx

    inputs = keras.Input(model.input_shape[1:], dtype="uint8", name="image")
    still = keras.Model(inputs, model(inputs, training=False), name=model.name)  # Keras' exporter would augment
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf2onnx looks for what NumPy 2 no longer has
        signature = [keras.InputSpec(shape=model.input_shape, dtype="uint8", name="image")]
        still.export(path, format="onnx", verbose=False, input_signature=signature)
    gc.collect()  # tf2onnx leaves gigabytes in cycles
    graph = onnx.load(path)
    if unknown := {node.op_type for node in graph.graph.node if not onnx.defs.has(node.op_type, node.domain)}:
        raise ValueError(", ".join(sorted(unknown)))  # tf2onnx writes them all the same
    if len(graph.graph.input) > 1:
        raise ValueError("the graph holds a constant array; use a Rescaling or Normalization layer in its place")
    if calibration is not None:
        _quantize_onnx(path, calibration)
        graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {artifacts.ATTRIBUTE: json.dumps(note)})
    onnx.save(graph, path)


def _quantize_onnx(path, calibration):
    """Replaces an ONNX file by its int8 form: weights per channel, activations by their ranges on the images."""
    import onnx
    from onnxruntime import InferenceSession, quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    (inside,) = InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()

    class Reader(quantization.CalibrationDataReader):
        blocks = inference.batched(calibration, CALIBRATED_AT_ONCE)

        def get_next(self):
            block = next(self.blocks, None)
            return None if block is None else {inside.name: np.stack(block)}

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        nodes = [node.name for node in onnx.load(prepared).graph.node]
        quantization.quantize_static(
            str(prepared),
            str(path),
            Reader(),
            per_channel=True,
            reduce_range=True,  # 7-bit weights: on CPUs with AVX2 alone, sums of 8-bit ones overflow silently
            op_types_to_quantize=["Conv", "MatMul", "Gemm", "Relu"],
            nodes_to_exclude=[name for name in nodes if resizing.SCOPE in name],  # would round pixels to 8 bits twice
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,  # with signed ones onnxruntime's convolutions stay float32
        )


def _to_litert(model, path, calibration, note, *, half=False):
    """Writes a LiteRT file: float16 weights with `half`, int8 weights and activations with calibration images."""
    import tensorflow as tf

    def representative():
        yield from ([image[None]] for image in calibration)

    options = {"optimizations": [tf.lite.Optimize.DEFAULT]} if half or calibration is not None else {}
    options |= {"target_spec": {"supported_types": [tf.float16]}} if half else {}
    options |= {} if calibration is None else {"representative_dataset": representative}
    model.export(path, format="litert", verbose=False, **options)
    with zipfile.ZipFile(path, "a") as archive:  # LiteRT's own way to carry files of other kinds
        archive.writestr(artifacts.MEMBER, json.dumps(note))


CONVERTERS = {".onnx": _to_onnx, ".tflite": _to_litert}
