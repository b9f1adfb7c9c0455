"""`cifar-keras export`: a saved model in another format, checked on real images before it gets its name.

Whatever the model was, what is written takes uint8 RGB at the model's size and returns float32 probabilities; scaling
and softmax that a model from elsewhere lacks become part of it. Class names and provenance stand inside.
"""

import gc
import json
import math
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers
from tqdm import tqdm

from cifar_keras import artifacts, blocks, inference
from cifar_keras.config import ConfigError, RunFailedError
from cifar_keras.datasets import NAMES
from cifar_keras.datasets import load as load_dataset
from cifar_keras.datasets.base import at_most, take
from cifar_keras.files import replacing
from cifar_keras.formats import imported
from cifar_keras.runtime import silent

CALIBRATED = 256  # training images that int8 ranges are taken from
AT_ONCE = 8  # of them: onnxruntime keeps every layer's output meanwhile, at 224 pixels 0.2 GB an image
CHECKED, CHECKED_LARGE, LARGE = 1000, 500, 128  # validation images; of models that see so many pixels a side or more
NEEDED = {".onnx": ("tf2onnx", "onnxruntime"), ".tflite": ("ai_edge_litert.interpreter",)}


@dataclass(frozen=True)
class Format:
    """A format to export to.

    Attributes:
        ending: of its files.
        int8: whether weights and activations are 8-bit integers.
        difference: how far a probability may lie from the original's.
        loss: how much accuracy may be lost.
        agreement: the share of images that must get the same class, where accuracy is unknown. Elsewhere it bounds
            nothing: a model that is right on half its images has many near-ties, which may fall either way.
    """

    ending: str
    int8: bool
    difference: float
    loss: float
    agreement: float


FORMATS = {
    "onnx": Format(".onnx", False, difference=1e-3, loss=0.001, agreement=0.999),
    "onnx-int8": Format(".onnx", True, difference=1.0, loss=0.01, agreement=0.9),
    "litert": Format(".tflite", False, difference=1e-3, loss=0.001, agreement=0.999),
    "litert-int8": Format(".tflite", True, difference=1.0, loss=0.01, agreement=0.9),
}


@dataclass(frozen=True)
class Check:
    """How an exported model compares with the original on the same images.

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
    def lost(self):
        """Accuracy lost by the exported model, as a share of the images; None without labels."""
        return self.accuracy and round((self.accuracy[1] - self.accuracy[0]) * self.images) / self.images

    def within(self, form):
        """Whether it stays in the bounds of a `Format`."""
        if self.accuracy is None:
            alike = self.agreement >= form.agreement
        else:
            alike = self.lost <= form.loss
        return alike and self.difference <= form.difference

    def __str__(self):
        accuracy = f", accuracy {self.accuracy[0]:.2%} (original {self.accuracy[1]:.2%})" if self.accuracy else ""
        return (
            f"{self.images:,} validation images: same class {self.agreement:.2%}, largest difference of a probability "
            f"{self.difference:.1e}{accuracy}"
        )


def export(classifier, to, path, *, dataset=None, data_dir=None):
    """Writes a model in another format, whole or not at all, after checking it on validation images.

    Args:
        classifier: `inference.Classifier` of a `.keras` or `.h5`.
        to: key of `FORMATS`.
        path: of the new file; None: beside the model, ending in `_int8` where it is.
        dataset: as `--dataset`; default what the model was trained on, where that has a name.
        data_dir: as `--data-dir`.
    Returns: `(path, Check)`.
    Raises: ConfigError where the images or a package are missing; RunFailedError, with nothing written, where the new
        model is further from the original than its format may be.
    """
    if (model := classifier.network.model) is None:
        raise ConfigError(f"MODEL must be a .keras or .h5 file to be exported. Received: {classifier.network.path}.")
    form = FORMATS[to]
    name = classifier.network.path.name.removesuffix(classifier.network.path.suffix) + "_int8" * form.int8
    path = Path(path) if path else classifier.network.path.with_name(name + form.ending)
    if path.suffix != form.ending:
        raise ConfigError(f"`--output` must end in {form.ending} for {to}. Received: {str(path)!r}.")
    calibration, images, labels = real_images(classifier, dataset or _own_dataset(classifier), data_dir)
    with replacing(path) as temporary:
        print(f"converting {model.name} to {to}", flush=True)
        convert(classifier, to, temporary, calibration)
        try:
            exported = inference.load(temporary)
        except ConfigError as error:
            raise RunFailedError(
                f"The converter must write what {to} can open. Received: a file that it can't ({error})."
            ) from error
        check = compared(classifier, exported, images, labels)
        if not check.within(form):
            raise RunFailedError(
                f"{to} must lose at most {100 * form.loss:g} points of accuracy (without labels: agree on "
                f"{form.agreement:.1%} of images), within {form.difference:g}. Received: {check}. Nothing was written."
            )
    return path, check


def convert(classifier, to, path, calibration):
    """Writes a model in another format, unchecked.

    Args:
        classifier: as for `export`.
        to: key of `FORMATS`.
        path: of the new file.
        calibration: uint8 images at the model's size, from whose activations int8 ranges are taken.
    Raises: ConfigError where a package is missing.
    """
    form = FORMATS[to]
    for module in NEEDED[form.ending]:
        imported(module)
    note = {**classifier.provenance, "class_names": list(classifier.class_names), "contract": artifacts.CONTRACT}
    note["exported_from"] = f"{classifier.network.path.name}, to {to}"
    model = exportable(classifier)
    try:
        CONVERTERS[form.ending](model, path, calibration if form.int8 else None, note)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailedError(
            f"The model must consist of operations that {to} has. Received: one that can't be converted ({reason})."
        ) from error


def _own_dataset(classifier):
    name = classifier.provenance.get("config", {}).get("dataset")
    if name not in NAMES:
        known = (
            f"the model was trained on a folder, {name}" if name else "the model does not say what it was trained on"
        )
        raise ConfigError(
            f"`--dataset` must name the images on which the new file is checked. Received: none; {known}."
        )
    return name


def real_images(classifier, dataset, data_dir):
    """Images at the model's size, uint8: `(calibration, validation, labels of these)`, None for other classes."""
    count = CHECKED_LARGE if min(classifier.size) >= LARGE else CHECKED
    data = load_dataset(dataset, data_dir=data_dir, image_size=None)
    train, val = (take(split, at_most(split, most)) for split, most in ((data.train, CALIBRATED), (data.val, count)))
    sized = [np.stack([classifier.pixels(np.asarray(image)) for image in split.images]) for split in (train, val)]
    return *sized, np.asarray(val.labels) if data.class_names == classifier.class_names else None


def compared(original, exported, images, labels):
    """The `Check` of two classifiers on uint8 images at their size and labels, or None in place of these."""
    parts = []
    with tqdm(total=len(images), unit=" images", desc="checking", disable=None, leave=False) as bar:
        for block in np.array_split(images, math.ceil(len(images) / inference.BATCH)):
            parts.append([one.probabilities(block) for one in (exported, original)])
            bar.update(len(block))
    return check_of(*(np.concatenate(part) for part in zip(*parts, strict=True)), labels)


def check_of(new, old, labels):
    """The `Check` of an exported model's probabilities `(n, classes)` against the original's; labels int or None."""
    classes = new.argmax(axis=1), old.argmax(axis=1)
    accuracy = None if labels is None else tuple(float(np.mean(one == labels)) for one in classes)
    return Check(len(new), float(np.abs(new - old).max()), float(np.mean(classes[0] == classes[1])), accuracy)


def exportable(classifier):
    """The whole of a classifier as one model of operations that the converters know: uint8 RGB to probabilities."""
    model = keras.models.clone_model(classifier.network.model, clone_function=_exportable_layer, recursive=True)
    _copy_weights(classifier.network.model, model)
    model.trainable = False  # or the graph would hold what moves BatchNorm's statistics
    if "contract" in classifier.provenance:
        return model
    x = inputs = keras.Input((*classifier.size, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1.0, dtype="float32")(x)
    x = inference.grey(x) if classifier.network.channels == 1 else x
    x = model(x if classifier.scaling == "raw" else _exportable_scale(x, classifier.scaling))
    x = inference.both(x, classifier.single) if classifier.single else x
    return keras.Model(inputs, layers.Softmax(dtype="float32")(x) if classifier.logits else x, name=model.name)


def _copy_weights(model, copy):
    """Gives a copy made by `_exportable_layer` its weights, those of models within included."""
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
    """The same layer, without what a converter would leave out of the file or does not know."""
    if isinstance(layer, layers.Normalization):
        return _rescaling(layer)
    copy = type(layer).from_config(layer.get_config())
    if getattr(copy, "activation", None) is keras.activations.gelu:
        copy.activation = _gelu
    if (
        isinstance(layer, layers.Resizing)
        and layer.input.shape[1] <= layer.height
        and layer.input.shape[2] <= layer.width
    ):
        copy.antialias = False  # which only shrinking needs, and neither format has
    return copy


def _rescaling(layer):
    """Normalization as Rescaling: its statistics are tensors, which would become further inputs of an ONNX graph."""
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance, "float64")), keras.config.epsilon())
    factor, mean = 1 / deviation.ravel(), np.asarray(layer.mean, "float64").ravel()
    return layers.Rescaling(factor.tolist(), (-mean * factor).tolist(), dtype=layer.dtype_policy, name=layer.name)


def _gelu(x):
    """GELU by the error function; TensorFlow takes its complement, which ONNX does not have."""
    return 0.5 * x * (1 + keras.ops.erf(x / math.sqrt(2)))


def _to_onnx(model, path, calibration, note):
    """Writes an ONNX file; int8 weights and activations where there are calibration images."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf2onnx looks for what NumPy 2 no longer has
        signature = [keras.InputSpec(shape=model.input_shape, dtype="uint8", name="image")]
        model.export(path, format="onnx", verbose=False, input_signature=signature)
    gc.collect()  # tf2onnx leaves gigabytes in cycles
    if calibration is not None:
        _quantize_onnx(path, calibration)
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {artifacts.ATTRIBUTE: json.dumps(note)})
    onnx.save(graph, path)


def _quantize_onnx(path, calibration):
    """Replaces an ONNX file by its int8 form: weights by channel, activations by the ranges that the images reach."""
    from onnxruntime import InferenceSession, quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    (inside,) = InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()

    class Reader(quantization.CalibrationDataReader):
        blocks = inference.batched(calibration, AT_ONCE)

        def get_next(self):
            block = next(self.blocks, None)
            return None if block is None else {inside.name: np.stack(block)}

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(path),
            Reader(),
            per_channel=True,
            op_types_to_quantize=["Conv", "MatMul", "Gemm", "Relu"],
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,  # signed ones leave onnxruntime's convolutions in float32
        )


def _to_litert(model, path, calibration, note):
    """Writes a LiteRT file; int8 weights and activations where there are calibration images."""
    import tensorflow as tf

    def representative():
        yield from ([image[None]] for image in calibration)

    int8 = {"optimizations": [tf.lite.Optimize.DEFAULT], "representative_dataset": representative}
    with silent():
        model.export(path, format="litert", verbose=False, **({} if calibration is None else int8))
    with zipfile.ZipFile(path, "a") as archive:  # LiteRT's own way to carry files of other kinds
        archive.writestr(artifacts.MEMBER, json.dumps(note))


CONVERTERS = {".onnx": _to_onnx, ".tflite": _to_litert}
