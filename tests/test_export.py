"""A model in another format says the same, or it is not written."""

import dataclasses
import functools
import runpy

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from cifar_keras import artifacts, cli, export, formats, inference, predict, runner
from cifar_keras.config import ConfigError, RunFailedError
from cifar_keras.datasets import load
from cifar_keras.paths import PROJECT, Paths

PACKAGES = {".onnx": ("onnx", "onnxruntime", "tf2onnx"), ".tflite": ("ai_edge_litert",)}


def needed(to):
    for package in PACKAGES[export.FORMATS[to].ending]:
        pytest.importorskip(package)


def network():
    """The layers that converters stumble over, with logits that tell images apart."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1.0, dtype="float32")(x)
    x = layers.Normalization(mean=(125.0, 120.0, 110.0), variance=(3900.0, 3800.0, 4400.0))(x)
    x = layers.Resizing(40, 40, antialias=True)(x)
    x = layers.Conv2D(32, 3, activation="gelu")(x)
    x = layers.BatchNormalization()(layers.MaxPooling2D(4)(x))
    x = layers.Dense(512, activation="relu")(layers.Activation("gelu")(layers.Flatten()(x)))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A saved model of this project."""
    paths = Paths(tmp_path_factory.mktemp("model"), "m", "model")
    names = list(load("shapes").class_names[:4])
    note = {"run_id": "r", "class_names": names, "config": {"dataset": "shapes"}}
    artifacts.save(artifacts.for_inference(network()), paths, provenance=note, history={})
    return inference.load(paths.keras)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(export, "CALIBRATED", 32)
    monkeypatch.setattr(export, "CHECKED", 60)


@pytest.mark.parametrize("to", export.FORMATS)
def test_every_format_says_what_the_model_says(own, to, tmp_path, monkeypatch):
    needed(to)
    form = export.FORMATS[to]
    monkeypatch.setitem(export.FORMATS, to, dataclasses.replace(form, loss=1.0, agreement=0.8 if form.int8 else 1.0))
    path, check = export.export(own, to, tmp_path / f"a{form.ending}", dataset="shapes")
    other = inference.load(path)
    assert other.class_names == own.class_names and other.provenance["run_id"] == "r" and not other.logits
    assert other.size == (32, 32) and other.network.dtype == "uint8"
    images = np.asarray(load("shapes").test.images[np.arange(50)])
    for count in (1, 50, 7):  # any batch, also after another one
        difference = np.abs(other.predict(images[:count]) - own.predict(images[:count])).max()
        assert difference < (0.2 if form.int8 else 1e-5)
    assert check.images == 60 and check.difference < (0.2 if form.int8 else 1e-5)
    ratio = own.network.path.stat().st_size / path.stat().st_size
    assert ratio > 3 if form.int8 else ratio < 1.3


def test_int8_convolutions_of_onnx_are_computed_in_int8(tmp_path):
    """Also those whose input somebody else reads too, as in a residual block."""
    needed("onnx-int8")
    import onnx
    import onnxruntime

    inputs = keras.Input((16, 16, 3))
    x = shortcut = layers.Conv2D(8, 3, activation="relu", padding="same")(inputs)
    x = layers.Conv2D(8, 1)(layers.Conv2D(8, 3, activation="relu", padding="same")(x))
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(x))).save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras", scaling="unit")
    calibration = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype="uint8")
    export.convert(classifier, "onnx-int8", tmp_path / "a.onnx", calibration)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), options)
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert nodes.count("QLinearConv") == 3 and "Conv" not in nodes and "FusedConv" not in nodes, nodes


def folder_of(root, height, width, *, count=40):
    """Two classes that brightness tells apart, as PNG files of one size."""
    random = np.random.RandomState(0)
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.randint(110 * label, 120 + 110 * label, (height, width, 3)).astype("uint8")
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Experiment 4 trained on a folder of images of a size, as a classifier and its folder; each size once."""

    @functools.cache
    def of(height, width):
        root = tmp_path_factory.mktemp(f"of{height}x{width}")
        images = folder_of(root / "images", height, width)
        experiment = runpy.run_path(str(PROJECT / "experiments" / "exp4_scratch.py"))["EXPERIMENT"]
        options = {"variant": "best", "budget": "demo", "seed": 0, "epochs": 1, "root": str(root)}
        runner.run(experiment, cli.Options(**options, dataset=str(images)))
        (path,) = (root / "model_cp").glob("*.keras")
        return inference.load(path), images

    return of


SIZES = ((224, 224), (48, 64), (20, 20))
QUICK = ((SIZES[0], "litert"), (SIZES[1], "onnx"))


@pytest.mark.parametrize(
    ("size", "to"),
    [
        pytest.param(size, to, marks=() if (size, to) in QUICK else pytest.mark.slow)
        for size in SIZES
        for to in export.FORMATS
    ],
)
def test_a_model_trained_on_one_s_own_images_exports(trained, size, to, tmp_path):
    needed(to)
    classifier, images = trained(*size)
    assert classifier.size == (min(size), min(size))  # a folder's images are brought to their shorter side
    path, check = export.export(classifier, to, tmp_path / f"a{export.FORMATS[to].ending}", dataset=str(images))
    pixels = np.random.default_rng(0).integers(0, 256, (4, *classifier.size, 3), dtype="uint8")
    new, old = (one.probabilities(pixels) for one in (inference.load(path), classifier))
    np.testing.assert_allclose(new, old, atol=0.2 if export.FORMATS[to].int8 else 1e-4)
    assert check.images > 0 and check.within(export.FORMATS[to])


@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_an_export_knows_no_more_classes_than_its_source(to, trained, tmp_path, capsys):
    needed(to)
    _, images = trained(20, 20)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    model.layers[-1].set_weights([np.float32([[-9, 9]] * 3), np.float32([12.2, -12.2])])  # class 1 is light
    model.save(tmp_path / "m.h5")
    exported, _ = export.export(inference.load(tmp_path / "m.h5"), to, None, dataset=str(images))
    assert "class_names" not in inference.load(exported).provenance
    capsys.readouterr()  # the conversion's lines
    outputs = []
    for path in (tmp_path / "m.h5", exported):
        assert predict.run(str(path), [str(images)], root=tmp_path, labelled=True) == 0
        outputs.append(capsys.readouterr().out)
    assert "accuracy 100.00%" in outputs[0] and outputs[1] == outputs[0]


@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_a_model_from_elsewhere_takes_its_scaling_and_softmax_along(to, tmp_path):
    needed(to)
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x)))
    keras.Model(inputs, x).save(tmp_path / "other.h5")
    for scaling in ("zscore", "caffe", "raw"):
        classifier = inference.load(tmp_path / "other.h5", scaling=scaling)
        path, check = export.export(classifier, to, tmp_path / f"a{export.FORMATS[to].ending}", dataset="shapes")
        assert check.accuracy is None and check.difference < 1e-4
        other = inference.load(path)
        assert other.states_scaling and other.provenance["exported_from"].startswith("other.h5")
        noise = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype="uint8")
        np.testing.assert_allclose(other.predict(noise), classifier.predict(noise), atol=1e-4)


def test_models_within_a_model_are_converted_too(tmp_path):
    needed("onnx")
    x = inner = keras.Input((8, 8, 3))
    x = layers.Normalization(mean=(0.5, 0.4, 0.3), variance=(0.04, 0.05, 0.06))(x)
    backbone = keras.Model(inner, layers.Conv2D(4, 3, activation="gelu")(x))
    x = layers.GlobalAveragePooling2D()(backbone(inputs := keras.Input((8, 8, 3))))
    keras.Model(inputs, layers.Dense(3, activation="softmax")(x)).save(tmp_path / "nested.keras")
    classifier = inference.load(tmp_path / "nested.keras", scaling="unit")
    export.convert(classifier, "onnx", tmp_path / "a.onnx", None)
    noise = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype="uint8")
    np.testing.assert_allclose(inference.load(tmp_path / "a.onnx").predict(noise), classifier.predict(noise), atol=1e-5)


def test_a_format_too_far_from_the_original_is_not_written(own, tmp_path, monkeypatch):
    needed("litert")
    monkeypatch.setitem(export.CONVERTERS, ".tflite", _swapped(export.CONVERTERS[".tflite"]))
    with pytest.raises(RunFailedError, match="without labels: agree on 99.9% of images.*Nothing was written"):
        export.export(own, "litert", tmp_path / "a.tflite", dataset="shapes")
    assert not list(tmp_path.iterdir())


def _swapped(convert):
    """A converter that mixes classes up."""

    def converting(model, path, calibration, note):
        swapped = keras.Model(model.input, model.output[:, ::-1])
        convert(swapped, path, calibration, note)

    return converting


def test_bounds_count_difference_agreement_and_lost_accuracy():
    form, good = export.FORMATS["onnx-int8"], export.Check(100, 0.1, 0.95, (0.895, 0.9))
    assert good.within(form) and dataclasses.replace(good, accuracy=None).within(form)
    assert dataclasses.replace(good, agreement=0.8).within(form)
    assert not dataclasses.replace(good, agreement=0.89, accuracy=None).within(form)
    assert not dataclasses.replace(good, accuracy=(0.88, 0.9)).within(form)
    assert dataclasses.replace(good, accuracy=(0.89, 0.9)).within(form), "one point exactly"
    assert not dataclasses.replace(good, difference=0.01).within(export.FORMATS["onnx"])


def test_a_missing_package_is_named_with_its_installation(own, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(formats.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="needs the package tf2onnx.*pip install -e '.\\[onnx\\]'"):
        export.export(own, "onnx", tmp_path / "a.onnx", dataset="shapes")
    (tmp_path / "a.tflite").write_bytes(b"x")
    with pytest.raises(ConfigError, match="needs the package ai_edge_litert.*\\[litert\\]"):
        inference.load(tmp_path / "a.tflite")


def test_endings_and_images_must_be_right(own, tmp_path):
    needed("litert")
    with pytest.raises(ConfigError, match="must end in .tflite for litert"):
        export.export(own, "litert", tmp_path / "a.onnx", dataset="shapes")
    with pytest.raises(ConfigError, match="`--dataset` must name the images"):
        export.export(dataclasses.replace(own, provenance={}), "litert", tmp_path / "a.tflite")
    with pytest.raises(ConfigError, match="Received: none; the model was trained on a folder, holidays"):
        from_a_folder = dataclasses.replace(own, provenance={"config": {"dataset": "holidays"}})
        export.export(from_a_folder, "litert", tmp_path / "a.tflite")


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
def test_broken_files_are_named(name, tmp_path):
    needed("onnx" if name.endswith("onnx") else "litert")
    for content in (b"", b"no model at all", b"\x00" * 1000, b"\x1c\x00\x00\x00TFL3" + b"\xff" * 200):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name} must be a whole saved model"):
            inference.load(tmp_path / name)


def test_a_litert_layer_that_puts_out_too_much_is_refused(tmp_path):
    needed("litert")
    x = layers.Rescaling(1.0, dtype="float32")(inputs := keras.Input((8, 8, 3), dtype="uint8"))
    model = keras.Model(inputs, layers.GlobalMaxPooling2D()(layers.UpSampling2D(3000)(x)))
    export.CONVERTERS[".tflite"](model, tmp_path / "huge.tflite", None, {})
    with pytest.raises(ConfigError, match="huge.tflite.*at most 33,554,432 values"):
        inference.load(tmp_path / "huge.tflite")


def test_a_litert_file_that_lies_about_its_shapes_is_refused(tmp_path):
    needed("litert")
    x = layers.Rescaling(1.0, dtype="float32")(inputs := keras.Input((8, 8, 3), dtype="uint8"))
    model = keras.Model(inputs, layers.GlobalMaxPooling2D()(layers.UpSampling2D(500)(x)))
    export.CONVERTERS[".tflite"](model, path := tmp_path / "forged.tflite", None, {})
    details = formats.imported("ai_edge_litert.interpreter").Interpreter(model_path=str(path)).get_tensor_details()
    true = max((one["shape"] for one in details), key=np.prod).astype("<i4")
    assert (content := path.read_bytes()).count(true.tobytes()) == 1
    path.write_bytes(content.replace(true.tobytes(), np.minimum(true, 2).tobytes()))
    with pytest.raises(ConfigError, match="forged.tflite.*at most 33,554,432 values"):
        inference.load(path)


def test_onnx_gets_no_more_memory_than_it_may(tmp_path):
    """However the graph comes by its shapes."""
    needed("onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("ConstantOfShape", ["count"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Add", ["means", "zero"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 8, 8, 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 3])
    for count in (10, formats.MAX_BYTES // 4 + 1):
        graph = helper.make_graph(nodes, "g", [image], [scores], [numpy_helper.from_array(np.array([count]), "count")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save(model, tmp_path / f"{count}.onnx")
    assert inference.load(tmp_path / "10.onnx").predict(np.zeros((1, 8, 8, 3), "uint8")).shape == (1, 3)
    with pytest.raises(ConfigError, match="Available memory of .* is smaller than requested"):
        inference.load(tmp_path / f"{count}.onnx")


def test_a_damaged_onnx_leaves_standard_output_alone(own, tmp_path, capfd):
    needed("onnx")
    export.convert(own, "onnx", tmp_path / "whole.onnx", None)
    content = (tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "a.onnx").write_bytes(content.replace(b'"contract"', b'"\xff\xffntract"'))
    capfd.readouterr()
    with pytest.raises(ConfigError, match="a.onnx must be a whole saved model"):
        inference.load(tmp_path / "a.onnx")
    assert capfd.readouterr() == ("", "")


def test_the_command_writes_beside_the_model_and_tells_the_check(own, capsys):
    needed("litert")
    with pytest.raises(SystemExit) as ended:
        cli.command(["export", str(own.network.path), "--to", "litert"])
    out = capsys.readouterr().out
    assert not ended.value.code and "same class 100.00%" in out and "m.model.tflite" in out
    assert own.network.path.with_name("m.model.tflite").is_file()
    assert set(cli.EXPORTS) == set(export.FORMATS)
    with pytest.raises(ConfigError, match="must be a .keras or .h5"):
        export.export(inference.load(own.network.path.with_name("m.model.tflite")), "litert", None)


def test_what_a_converter_does_not_know_ends_in_a_sentence(own, tmp_path, monkeypatch):
    needed("litert")

    def failing(*_):
        raise ValueError("no such\noperation")

    monkeypatch.setitem(export.CONVERTERS, ".tflite", failing)
    with pytest.raises(RunFailedError, match="can't be converted \\(no such operation\\)"):
        export.export(own, "litert", tmp_path / "a.tflite", dataset="shapes")
    assert not list(tmp_path.iterdir())
