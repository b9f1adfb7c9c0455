"""A model in another format says the same, or it is not written."""

import dataclasses
import importlib.util

import keras
import numpy as np
import pytest
from helpers import experiment_of
from keras import layers
from PIL import Image

from cifar_keras import cli, runner
from cifar_keras.config import ConfigError, RunFailedError
from cifar_keras.data import load
from cifar_keras.models import zoo
from cifar_keras.options import Options
from cifar_keras.saved import artifacts, export, formats, inference, resizing
from cifar_keras.utils.paths import PROJECT, Paths

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


# Of each kind: classes that agree, how far a probability may be off, how many times smaller the file is.
KEPT = {"float32": (1.0, 1e-5, (0, 1.3)), "float16": (0.95, 0.02, (1.5, 2.2)), "int8": (0.8, 0.2, (3, np.inf))}


@pytest.mark.parametrize("to", export.FORMATS)
def test_every_format_says_what_the_model_says(own, to, tmp_path, monkeypatch):
    needed(to)
    form = export.FORMATS[to]
    agreement, most, smaller = KEPT[form.kind]
    monkeypatch.setitem(export.FORMATS, to, dataclasses.replace(form, loss=1.0, agreement=agreement))
    path, check = export.export(own, to, tmp_path / f"a{form.ending}", dataset="shapes")
    other = inference.load(path)
    assert other.class_names == own.class_names and other.provenance["run_id"] == "r" and not other.logits
    assert other.size == (32, 32) and other.network.dtype == "uint8"
    images = np.asarray(load("shapes").test.images[np.arange(50)])
    for count in (1, 50, 7):  # any batch, also after another one
        difference = np.abs(other.predict(images[:count]) - own.predict(images[:count])).max()
        assert difference < most
    assert check.images == 60 and check.difference < most
    least, limit = smaller
    assert least < own.network.path.stat().st_size / path.stat().st_size < limit


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
    weights = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "a.onnx").graph.initializer]
    kernels = [one for one in weights if one.dtype == np.int8 and one.ndim == 4]
    assert len(kernels) == 3 and max(np.abs(one.astype(int)).max() for one in kernels) == 64, "sums fit in 16 bits"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), options)
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert nodes.count("QLinearConv") == 3 and "Conv" not in nodes and "FusedConv" not in nodes, nodes


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
    assert dataclasses.replace(good, images=20, accuracy=(0.85, 0.9)).within(form), "one image"
    assert not dataclasses.replace(good, images=20, accuracy=(0.8, 0.9)).within(form)
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
    with pytest.raises(ConfigError, match="Received: none; .* was trained on the folder holidays"):
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
    for count in (10, formats.MAX_ONNX_BYTES // 4 + 1):
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


@pytest.mark.parametrize(
    "error", [ValueError("no such\noperation"), KeyError("x"), MemoryError(), Exception("loc(%0)")]
)
def test_a_failing_converter_ends_in_a_sentence_and_changes_no_file(own, error, tmp_path, monkeypatch):
    needed("litert")
    (tmp_path / "a.tflite").write_text("what stood there before")
    monkeypatch.setattr(export, "real_images", lambda *_, **__: (np.zeros((1, 32, 32, 3), "uint8"), None, None))

    def failing(model, path, *_):
        path.write_bytes(b"half a mod")
        raise error

    monkeypatch.setitem(export.CONVERTERS, ".tflite", failing)
    reason = {"ValueError": "no such operation", "KeyError": "'x'"}.get(type(error).__name__, type(error).__name__)
    with pytest.raises(RunFailedError, match=f"can't be converted \\({reason}\\)") as raised:
        export.export(own, "litert", tmp_path / "a.tflite", dataset="shapes")
    assert raised.value.exit_code == 3
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what stood there before"]


@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_what_the_converter_says_is_for_verbose(to, tmp_path, capfd):
    needed(to)
    x = layers.UpSampling2D(2, interpolation="lanczos3")(inputs := keras.Input((8, 8, 3)))
    keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))).save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras")
    for verbose in (False, True):
        capfd.readouterr()
        with pytest.raises(RunFailedError, match="can't be converted \\(ScaleAndTranslate\\)") as raised:
            export.convert(classifier, to, tmp_path / f"b{export.FORMATS[to].ending}", None, verbose=verbose)
        assert len(str(raised.value)) < 220 and ("--verbose" in str(raised.value)) is not verbose
        out, err = capfd.readouterr()
        assert not out and ("ScaleAndTranslate" in err and len(err) > 300 if verbose else not err)


def test_a_model_without_class_names_stays_without(tmp_path, capsys):
    """So that the new file takes the folders that the old one took."""
    x = layers.GlobalAveragePooling2D()(inputs := keras.Input((8, 8, 3)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="scores")(x))
    model.get_layer("scores").set_weights([np.eye(3, dtype="float32"), np.zeros(3, "float32")])
    model.save(tmp_path / "a.h5")
    classifier = inference.load(tmp_path / "a.h5", scaling="raw")
    colours = {"brick": (200, 0, 0), "grass": (0, 200, 0), "water": (0, 0, 200)}
    for name, colour in colours.items():  # one image of grass in each folder, so that 5 of 9 are not right
        (tmp_path / "images" / name).mkdir(parents=True)
        for number, one in enumerate((colour, colours["grass"], colours["grass"])):
            Image.new("RGB", (8, 8), one).save(tmp_path / "images" / name / f"{number}.png")
    files = {"a.h5": ["--input-scaling", "raw"]}
    for to in ("onnx", "litert"):
        if all(map(_installed, PACKAGES[export.FORMATS[to].ending])):
            files[name := f"a{export.FORMATS[to].ending}"] = []
            export.convert(classifier, to, tmp_path / name, None)
            other = inference.load(tmp_path / name)
            assert "class_names" not in other.provenance and other.class_names == classifier.class_names
    for name, options in files.items():
        with pytest.raises(SystemExit) as ended:
            images = [str(tmp_path / "images"), "--labels-from-folders"]
            cli.command(["predict", str(tmp_path / name), *images, *options])
        assert not ended.value.code and "accuracy 55.56%" in capsys.readouterr().out, name


def _installed(package):
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_every_way_to_resize_is_exported_also_in_a_model_for_any_size(to, tmp_path):
    needed(to)
    ways = (
        {"antialias": True},
        {"interpolation": "bicubic"},
        {"interpolation": "lanczos3", "antialias": True},
        {"interpolation": "nearest"},
        {"crop_to_aspect_ratio": True},
        {"pad_to_aspect_ratio": True, "fill_value": 77.0, "antialias": True},
    )
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    within = keras.Sequential([keras.Input((None, None, 3)), layers.Resizing(14, 18, antialias=True)])
    parts = [within(inputs), *(layers.Resizing(14, 18, **way)(inputs) for way in ways)]
    x = layers.Rescaling(1 / 127.5, -1.0)(layers.Concatenate()(parts))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 5, activation="relu")(x))
    keras.Model(inputs, layers.Dense(3, activation="softmax", kernel_initializer="he_normal")(x)).save(
        tmp_path / "a.keras"
    )
    classifier = dataclasses.replace(inference.load(tmp_path / "a.keras", image_size=30), size=(20, 45))
    export.convert(classifier, to, path := tmp_path / f"a{export.FORMATS[to].ending}", None)
    noise = np.random.default_rng(1).integers(0, 256, (4, 20, 45, 3), dtype="uint8")
    other = inference.load(path)
    assert other.size == (20, 45)
    np.testing.assert_allclose(other.probabilities(noise), classifier.probabilities(noise), atol=1e-5)


@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_augmentation_within_a_model_is_left_out(to, tmp_path):
    needed(to)
    keras.utils.set_random_seed(0)
    x = layers.RandomFlip()(inputs := keras.Input((24, 24, 3)))
    x = layers.RandomContrast(0.5)(layers.RandomZoom(0.5)(layers.RandomRotation(0.5)(x)))
    x = layers.Flatten()(layers.GaussianNoise(1.0)(layers.Conv2D(4, 3)(x)))
    keras.Model(inputs, layers.Dense(3, activation="softmax")(x)).save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras", scaling="unit")
    export.convert(classifier, to, path := tmp_path / f"a{export.FORMATS[to].ending}", None)
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype="uint8")
    expected = classifier.probabilities(images)
    np.testing.assert_allclose(inference.load(path).probabilities(images), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-2


COLOURS = {"brick": (200, 40, 30), "grass": (30, 180, 40), "water": (30, 60, 200)}


def coloured(size, count, seed):
    """Images that are easy to tell apart, uint8 `(count * 3, *size, 3)`, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    means = np.array(list(COLOURS.values()))[labels][:, None, None]
    return np.clip(random.normal(means, 40, (len(labels), *size, 3)), 0, 255).astype("uint8"), labels


def folder_of(size, path, *, count):
    """A folder of such images as PNG files."""
    images, labels = coloured(size, count, seed=0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (path / list(COLOURS)[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / list(COLOURS)[label] / f"{number}.png")
    return path


def check_export(classifier, to, folder, path):
    """Exports with the folder's images and compares on others."""
    path, check = export.export(classifier, to, path / f"a{export.FORMATS[to].ending}", dataset=str(folder))
    assert check.accuracy == (1.0, 1.0)
    images, labels = coloured(classifier.size, 5, seed=1)
    new, old = inference.load(path).probabilities(images), classifier.probabilities(images)
    assert np.abs(new - old).max() < (0.3 if export.FORMATS[to].int8 else 1e-5)
    assert (new.argmax(axis=1) == labels).all() and (old.argmax(axis=1) == labels).all()


@pytest.mark.parametrize(
    ("size", "to"), [((224, 224), "onnx-int8"), ((224, 224), "litert"), ((48, 64), "litert-int8"), ((20, 20), "onnx")]
)
def test_models_of_larger_smaller_and_uneven_images_are_exported(size, to, tmp_path):
    """32 pixels is what the network itself takes."""
    needed(to)
    model = zoo.build(zoo.MODELS["simple_cnn"], image_shape=(*size, 3), classes=3, steps=100, seed=0)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*coloured(size, 8, seed=2), batch_size=4, epochs=4, verbose=0)
    paths = Paths(tmp_path, "m", "model")
    artifacts.save(artifacts.for_inference(model), paths, provenance={"class_names": list(COLOURS)}, history={})
    check_export(inference.load(paths.keras), to, folder_of(size, tmp_path / "images", count=10), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (48, 64), (20, 20)])
def test_a_model_trained_on_a_folder_is_exported_to_every_format(size, tmp_path):
    for to in export.FORMATS:
        needed(to)
    folder = folder_of(size, tmp_path / "images", count=20)
    scratch = experiment_of(PROJECT / "experiments" / "exp4_scratch.py")
    plain = {"variant": "best", "seed": 0, "root": str(tmp_path), "dataset": str(folder)}
    assert runner.run(scratch, Options(**plain, epochs=3, batch_size=10))["status"] == "finished"
    (path,) = (tmp_path / "model_cp").glob("*.keras")
    for to in export.FORMATS:
        check_export(inference.load(path), to, folder, tmp_path)


def test_resizing_is_not_computed_in_int8_by_onnx(tmp_path):
    needed("onnx-int8")
    import onnx

    x = layers.Resizing(8, 8, antialias=True)(inputs := keras.Input((20, 24, 3)))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(x)))
    keras.Model(inputs, layers.Dense(3, activation="softmax")(x)).save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras")
    calibration = np.random.default_rng(0).integers(0, 256, (8, 20, 24, 3), dtype="uint8")
    export.convert(classifier, "onnx-int8", tmp_path / "a.onnx", calibration)
    graph = onnx.load(tmp_path / "a.onnx").graph
    resize = [node for node in graph.node if node.op_type == "Conv" and resizing.SCOPE in node.name]
    assert len(resize) == 2 and not any("Quantize" in name for node in resize for name in node.input)
    assert sum(node.op_type == "Conv" for node in graph.node) == 3


def test_what_is_exported_is_float32_under_every_policy(own):
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = export.exportable(own)
        elsewhere = dataclasses.replace(own, scaling="zscore", provenance={}, logits=True)
        layers_of = [*model.layers, *export.exportable(elsewhere)._flatten_layers(include_self=False)]
    finally:
        keras.config.set_dtype_policy(policy)
    assert len(layers_of) > 20
    computing = [one for one in layers_of if not isinstance(one, keras.Model | layers.InputLayer)]
    assert {one.compute_dtype for one in computing} == {"float32"}


@pytest.mark.parametrize("to", ["onnx", "litert"])
@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
def test_grey_images_and_one_output_become_rgb_and_two(to, activation, tmp_path):
    needed(to)
    keras.utils.set_random_seed(0)
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(inputs := keras.Input((12, 12, 1))))
    keras.Model(inputs, layers.Dense(1, activation=activation)(x)).save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras", scaling="unit")
    export.convert(classifier, to, path := tmp_path / f"a{export.FORMATS[to].ending}", None)
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype="uint8")
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[..., None]
    score = keras.models.load_model(tmp_path / "a.keras").predict_on_batch(np.float32(grey) / 255)[:, 0]
    second = score if activation == "sigmoid" else 1 / (1 + np.exp(-score))
    other = inference.load(path)
    got = other.probabilities(images)
    assert got.shape == (20, 2) and len(other.class_names) == 2
    np.testing.assert_allclose(got[:, 1], second, atol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)


def difference(model, to, path):
    """The largest difference of probabilities between a model and its exported form, on noise."""
    model.save(path / "a.keras")
    classifier = inference.load(path / "a.keras", scaling="raw")
    export.convert(classifier, to, file := path / f"a{export.FORMATS[to].ending}", None)
    noise = np.random.default_rng(1).integers(0, 256, (5, *classifier.size, 3), dtype="uint8")
    new, old = inference.load(file).probabilities(noise), classifier.probabilities(noise)
    assert np.ptp(old, axis=0).max() > 1e-3, "images that the model tells apart"
    return np.abs(new - old).max()


def small_head(x):
    x = layers.Conv2D(4, 3, strides=2)(layers.Rescaling(1 / 50)(x))
    return layers.Dense(3, activation="softmax")(layers.Flatten()(x))


@pytest.mark.parametrize("within", [False, True])
def test_constant_arrays_of_a_graph_stay_constants(within, tmp_path):
    needed("onnx")
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((12, 16, 3))
    x = keras.applications.resnet50.preprocess_input(x)
    x = keras.ops.subtract(x - np.array([1.0, 20.0, 3.0], "float32"), keras.ops.convert_to_tensor([5.0, 1.0, 40.0]))
    x = keras.ops.multiply(x, x2=keras.ops.convert_to_tensor([1.0, 0.5, 0.1]))
    model = keras.Model(inputs, small_head(x))
    model = keras.Sequential([keras.Input((12, 16, 3)), model]) if within else model
    assert difference(model, "onnx", tmp_path) < 1e-5
