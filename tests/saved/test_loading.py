"""Whatever a model was trained with, it loads for inference: compiled, in 16 bits, described and weighted apart."""

import inspect
import io
import json
import zipfile
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
from helpers import noise
from keras import layers

from cifar_keras.config import ConfigError
from cifar_keras.models import zoo
from cifar_keras.saved import artifacts, export, inference, safe_loading
from cifar_keras.utils.paths import Paths

IMAGES = noise(4, size=8).images * np.array([0.1, 0.4, 0.7, 1.0], "float32")[:, None, None, None] / 255
MIXED = ("mixed_bfloat16", "mixed_float16")
TRAINING = {"optimizer": "adam", "loss": "categorical_crossentropy", "metrics": ["accuracy"]}


def moved(model):
    """The model with biases, scales and statistics away from where they start, so that swapping them would show."""
    random = np.random.RandomState(1)
    for variable in model.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            new = random.uniform(0, 0.2, variable.shape) if len(variable.shape) == 1 else 0
            variable.assign(keras.ops.cast(variable, "float32") + new)
    return model


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def network(x, classes=3):
    """A residual CNN behind `x`."""
    x = shortcut = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.Add()([layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))), shortcut])
    return layers.Dense(classes, activation="softmax")(layers.GlobalMaxPooling2D()(x))


def sequential():
    """A stack that learns its input's shape from the first images."""
    model = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3)])
    model.build((None, 8, 8, 3))
    return model


def functional():
    return keras.Model(inputs := keras.Input((8, 8, 3)), network(inputs))


def augmented():
    x = inputs = keras.Input((8, 8, 3))
    augmentation = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1)])
    x = layers.RandomContrast(0.1)(layers.RandAugment(value_range=(0, 1))(augmentation(x)))
    x = layers.GaussianNoise(0.1)(layers.RandomTranslation(0.1, 0.1, seed=3)(x))
    return keras.Model(inputs, layers.Dropout(0.5)(network(x)))


def nested():
    """Models within models, each compiled."""
    inner = functional()
    inner.compile(optimizer=keras.optimizers.Lion(), loss="mse")
    outer = keras.Sequential([keras.Input((8, 8, 3)), inner, layers.Dense(3)])
    outer.compile(**TRAINING)
    return keras.Model(inputs := keras.Input((8, 8, 3)), layers.Softmax()(outer(inputs)))


def operations():
    """Arithmetic on tensors, attention and normalisation, as a small vision transformer has them."""
    x = inputs = keras.Input((8, 8, 3))
    x = keras.ops.reshape(x * 2 - 1, (-1, 64, 3))
    x = x + layers.MultiHeadAttention(2, 4)(layers.LayerNormalization()(x), x)
    return keras.Model(inputs, layers.Dense(3)(keras.ops.mean(x, axis=1)))


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def answers(model):
    """What a model predicts; eagerly, since most are asked once."""
    return np.asarray(keras.ops.cast(model(IMAGES, training=False), "float32"))


def assert_same(model, path):
    """Whether a file gives the predictions of the model that it holds, which plain Keras gives too."""
    expected = answers(model)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the model could not show a difference"
    np.testing.assert_allclose(answers(artifacts.load(path)), expected, atol=1e-6)


@pytest.mark.parametrize("make", [sequential, functional, augmented, nested, operations])
def test_a_compiled_archive_predicts_as_in_plain_keras(make, tmp_path):
    model = moved(make())
    model.compile(**TRAINING)
    model.save(path := tmp_path / "a.keras")
    assert "compile_config" in json.loads(members(path)["config.json"])
    # Plain Keras can't load models compiled within models: it looks for the moments of their optimisers.
    assert_same(model if make is nested else keras.saving.load_model(path, compile=False), path)


def optimizers():
    """One of each of Keras' optimisers."""
    helpers = (keras.optimizers.Optimizer, keras.optimizers.OptimizerMap)
    for name, cls in vars(keras.optimizers).items():
        if not inspect.isclass(cls) or cls in helpers:
            continue
        adam = keras.optimizers.Adam()
        wrapped = {"LossScaleOptimizer": adam, "MultiOptimizer": keras.optimizers.OptimizerMap(adam)}
        yield cls(wrapped.get(name, 0.01))


def test_every_optimiser_of_keras_is_passed_over(tmp_path):
    names, model = [], moved(keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]))
    expected = answers(model)
    for optimizer in optimizers():
        model.compile(optimizer=optimizer, loss="mse")
        optimizer.build(model.trainable_variables)
        model.save(path := tmp_path / "a.keras")
        np.testing.assert_allclose(answers(artifacts.load(path)), expected, atol=1e-6, err_msg=optimizer.name)
        names.append(type(optimizer).__name__)
    assert {"Adam", "SGD", "Muon", "LossScaleOptimizer", "MultiOptimizer"} <= set(names) and len(names) >= 14


class Seen:
    """What a program of its own would define; counts how often it is made."""

    made = 0

    def __init__(self, **settings):
        Seen.made += 1
        super().__init__(**settings)

    def get_config(self):
        return {"name": "seen"}


class OwnLoss(Seen, keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred))


class OwnMetric(Seen, keras.metrics.Metric):
    def update_state(self, y_true, y_pred, sample_weight=None):
        pass

    def result(self):
        return 0.0


def own_function(y_true, y_pred):
    return keras.ops.mean(y_true - y_pred)


@pytest.mark.parametrize("registered", [False, True])
def test_a_loss_or_metric_of_its_own_is_neither_needed_nor_made(registered, tmp_path):
    model = moved(functional())
    for loss in (OwnLoss(), own_function):
        model.compile(optimizer="adam", loss=loss, metrics=[OwnMetric()], jit_compile=True, steps_per_execution=2)
        model.save(path := tmp_path / "a.keras")
        scope = {"OwnLoss": OwnLoss, "OwnMetric": OwnMetric, "own_function": own_function} if registered else {}
        with keras.saving.custom_object_scope(scope):
            before = Seen.made
            assert_same(model, path)
            assert Seen.made == before


HOSTILE = {
    "optimizer": {"module": "os", "class_name": "system", "config": {"command": "false"}, "registered_name": "x>y"},
    "loss": {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}},
    "metrics": [{"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}}, float("nan"), {}],
}


@pytest.mark.parametrize("compiled", [HOSTILE, [5, "x"]])
def test_what_was_compiled_is_dropped_unseen_at_every_depth(compiled, tmp_path):
    model = moved(nested())
    model.save(path := tmp_path / "a.keras")
    content = members(path)
    config = json.loads(content["config.json"])
    within = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Sequential")
    assert "compile_config" in within and within["config"]["layers"][1]["class_name"] == "Functional"
    config["compile_config"] = within["compile_config"] = compiled
    within["config"]["layers"][1]["compile_config"] = compiled
    write_members(path, content | {"config.json": json.dumps(config)})
    assert_same(model, path)


def without(path, name):
    """Takes a part of the weights out of an archive."""
    content = members(path)
    with h5py.File(weights := io.BytesIO(content["model.weights.h5"]), "a") as file:
        del file[name]
    write_members(path, content | {"model.weights.h5": weights.getvalue()})


@pytest.mark.parametrize(
    "name", ["layers/dense", "layers/conv2d_1", "layers/dense/vars/1", "layers/batch_normalization/vars/3", "layers"]
)
def test_an_archive_without_some_of_its_weights_is_refused(name, tmp_path):
    functional().save(path := tmp_path / "a.keras")
    without(path, name)
    with pytest.raises(ConfigError, match="a.keras (can't be used. The weights must be|must be a whole saved model)"):
        artifacts.load(path)


def test_weights_of_more_layers_than_described_are_refused(tmp_path):
    keras.Sequential([keras.Input((8, 8, 3)), *(layers.Conv2D(3, 3) for _ in range(3))]).save(
        path := tmp_path / "a.keras"
    )
    content = members(path)
    config = json.loads(content["config.json"])
    del config["config"]["layers"][-1]
    write_members(path, content | {"config.json": json.dumps(config)})
    with pytest.raises(ConfigError, match="3 layers' for 2 in '/layers'; first difference: 'conv2d_2'"):
        artifacts.load(path)


def test_a_link_among_the_weights_is_refused(tmp_path):
    functional().save(path := tmp_path / "a.keras")
    content = members(path)
    with h5py.File(weights := io.BytesIO(content["model.weights.h5"]), "a") as file:
        del file["layers/dense"]
        file["layers/dense"] = h5py.ExternalLink("/elsewhere.h5", "/secret")
    write_members(path, content | {"model.weights.h5": weights.getvalue()})
    with pytest.raises(ConfigError, match="must be in the file itself. Received: 'layers/dense'"):
        artifacts.load(path)


def test_an_operation_that_puts_out_too_much_is_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.ops.mean(keras.ops.tile(inputs, (1, 4000, 4000, 1)), axis=(1, 2))).save(
        tmp_path / "a.keras"
    )
    with pytest.raises(ConfigError, match="at most 33,554,432 values"):
        artifacts.load(tmp_path / "a.keras")


# 16 bits --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def widths(model):
    """The types that a model's layers compute in and keep their weights in."""
    found = {kind for layer in model._flatten_layers() for kind in (layer.compute_dtype, layer.variable_dtype)}
    return found - {"uint8"}


def assert_saved_in_float32(row, folder, policy):
    """A row's model, built in 16 bits, is saved in float32 in every form, with the same weights."""
    images = noise(4, size=32).images
    built = moved(zoo.build(row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0))
    assert policy.removeprefix("mixed_") in widths(built)
    model = artifacts.for_inference(built)
    assert widths(model) == {"float32"} and model.inputs[0].dtype == "uint8" and model.name == built.name
    for one, other in zip(model.get_weights(), built.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    expected = np.asarray(model(images))  # eagerly: each model is asked once
    narrow = keras.ops.softmax(keras.ops.cast(built(images), "float32"))
    assert np.array_equal(expected.argmax(axis=1), np.asarray(narrow).argmax(axis=1))
    paths = Paths(folder, "m", "model")
    artifacts.save(model, paths, provenance={}, history={})
    assert not {"float16", "bfloat16"} & set(paths.architecture.read_text().replace('"', "_").split("_"))
    apart = artifacts.rebuild(paths.architecture, paths.custom_h5)
    for loaded in (artifacts.load(paths.keras), artifacts.load(paths.h5), apart):  # under the policy of training
        assert widths(loaded) == {"float32"} and loaded.inputs[0].dtype == "uint8"
        np.testing.assert_allclose(loaded(images), expected, atol=1e-6)


@pytest.mark.parametrize("policy", [MIXED[0], pytest.param(MIXED[1], marks=pytest.mark.slow)], indirect=True)
def test_a_network_trained_in_16_bits_is_saved_in_float32(policy, tmp_path):
    assert_saved_in_float32(zoo.MODELS["scratch_cnn"], tmp_path, policy)


@pytest.mark.slow
@pytest.mark.parametrize("policy", MIXED, indirect=True)
@pytest.mark.parametrize("name", ["resnet50_frozen", "resnet50_augment_224", "resnet50_finetune"])
def test_every_resnet_trained_in_16_bits_is_saved_in_float32(name, policy, tmp_path):
    assert_saved_in_float32(replace(zoo.MODELS[name], pixels=32), tmp_path, policy)


def test_what_is_float32_is_not_rebuilt():
    model = functional()
    assert artifacts.for_inference(model).layers[:-1] == model.layers


@pytest.mark.parametrize(
    ("policy", "make"),
    [("mixed_bfloat16", functional), ("mixed_float16", nested), ("bfloat16", functional)],
    indirect=["policy"],
)
def test_a_file_in_16_bits_from_elsewhere_loads_in_float32(make, policy, tmp_path):
    model = moved(make())
    expected = answers(model)
    for name in ("a.keras", "a.h5", "only.h5", "only.weights.h5"):
        model.save_weights(tmp_path / name) if "weights" in name else model.save(tmp_path / name)
    with h5py.File(tmp_path / "only.h5", "a") as file:
        del file.attrs["model_config"]
    (tmp_path / "a.json").write_text(model.to_json())
    loaded = [artifacts.load(tmp_path / name) for name in ("a.keras", "a.h5")]
    loaded += [artifacts.rebuild(tmp_path / "a.json", tmp_path / name) for name in ("only.h5", "only.weights.h5")]
    first = answers(loaded[0])
    np.testing.assert_allclose(first, expected, atol=0.05)
    np.testing.assert_array_equal(first.argmax(axis=1), expected.argmax(axis=1))
    for other in loaded:
        assert widths(other) == {"float32"} and other.output.dtype == "float32"
        np.testing.assert_allclose(answers(other), first, atol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [
        *("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", None),
        {"class_name": "Policy", "config": {"name": "mixed_float16"}},
        {"class_name": "PolicyV1", "config": {"name": "mixed_float16", "loss_scale": {"class_name": "X"}}},
        {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "bfloat16"}, "registered_name": None},
    ],
)  # fmt: skip
def test_every_way_to_say_16_bits_is_read(dtype):
    conv = {"class_name": "Conv2D", "config": {"name": "c", "filters": 2, "kernel_size": 3, "dtype": dtype}}
    start = {
        "class_name": "InputLayer",
        "config": {"batch_input_shape": [None, 8, 8, 3], "dtype": "uint8", "name": "i"},
    }
    model = safe_loading.build(
        safe_loading.to_keras3({"class_name": "Sequential", "config": {"name": "s", "layers": [start, conv]}})
    )
    assert widths(model) == {"float32"} and model.inputs[0].dtype == "uint8"


@pytest.mark.parametrize("policy", ["mixed_bfloat16"], indirect=True)
def test_a_network_trained_in_16_bits_exports_to_onnx(policy, tmp_path):
    pytest.importorskip("tf2onnx")
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = keras.Model(inputs, network(layers.Rescaling(1 / 255, dtype="float32")(inputs)))
    paths = Paths(tmp_path, "m", "model")
    artifacts.save(artifacts.for_inference(moved(model)), paths, provenance={"class_names": list("abc")}, history={})
    original, pixels = inference.load(paths.keras), noise(4, size=8).images
    export.convert(original, "onnx", tmp_path / "m.onnx", pixels)
    np.testing.assert_allclose(inference.load(tmp_path / "m.onnx").predict(pixels), original.predict(pixels), atol=1e-5)


# Architecture and weights apart ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A compiled network's description and weights in every form, and what it predicts."""
    folder, model = tmp_path_factory.mktemp("apart"), moved(nested())
    model.compile(**TRAINING)
    for name in ("whole.keras", "whole.h5"):
        model.save(folder / name)
    model.save_weights(folder / "alone.weights.h5")
    (folder / "renamed.hdf5").write_bytes((folder / "alone.weights.h5").read_bytes())
    with h5py.File(folder / "whole.h5") as source, h5py.File(folder / "legacy.h5", "w") as target:
        for name in source["model_weights"]:
            source.copy(source["model_weights"][name], target, name)
        target.attrs.update(source["model_weights"].attrs)
    (folder / "model.json").write_text(model.to_json(indent=1))
    (folder / "quoted.json").write_text(json.dumps(model.to_json()))
    (folder / "settings.txt").write_text(json.dumps(model.get_config()))
    (folder / "config.json").write_bytes(members(folder / "whole.keras")["config.json"])
    with h5py.File(folder / "whole.h5") as file:
        (folder / "of_h5").write_text(file.attrs["model_config"])
    return folder, answers(model)


@pytest.mark.parametrize("weights", ["whole.keras", "whole.h5", "alone.weights.h5", "renamed.hdf5", "legacy.h5"])
def test_weights_of_every_layout_go_with_an_architecture(weights, apart):
    folder, expected = apart
    model = artifacts.rebuild(folder / "model.json", folder / weights)
    np.testing.assert_allclose(answers(model), expected, atol=1e-6)
    version = "" if weights in ("alone.weights.h5", "renamed.hdf5") else f"Keras {keras.__version__}"
    assert artifacts.written_by(folder / weights, folder / "model.json") == version
    assert artifacts.provenance(folder / weights) is None


@pytest.mark.parametrize("architecture", ["quoted.json", "settings.txt", "config.json", "of_h5"])
def test_an_architecture_of_every_kind_goes_with_weights(architecture, apart):
    folder, expected = apart
    model = artifacts.rebuild(str(folder / architecture), str(folder / "alone.weights.h5"))
    np.testing.assert_allclose(answers(model), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "JSON of a list"),
        ('{"accuracy": [0.5]}', "JSON with accuracy"),
        ('{"class_name": "Sequential"}', "JSON with class_name"),
        ("not JSON", "not JSON"),
        ("[" * 10**5, "not JSON"),
        ("\udcff", "not JSON"),
    ],
)
def test_json_of_another_kind_is_refused_by_its_name(text, said, apart, tmp_path):
    (tmp_path / "history.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=f"history.json can't be used. The architecture must be JSON.*{said}"):
        artifacts.rebuild(tmp_path / "history.json", apart[0] / "legacy.h5")


def test_hdf5_that_holds_no_weights_is_refused(apart, tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = np.zeros(10**5)
    with pytest.raises(ConfigError, match="data.h5 can't be used.*an HDF5 file that holds images"):
        artifacts.rebuild(apart[0] / "model.json", tmp_path / "data.h5")


def notebook(numbers):
    """Three layers of one shape, numbered as a cell that ran before would have them."""
    convs = [layers.Conv2D(3, 3, padding="same", activation="tanh", name=f"conv2d{number}") for number in numbers]
    return keras.Sequential([keras.Input((8, 8, 3)), *convs, layers.GlobalMaxPooling2D()])


def test_layers_that_a_second_run_numbered_anew_are_taken_in_their_order_and_named(tmp_path, capsys):
    trained = moved(notebook(["_8", "_9", "_10"]))
    trained.save(tmp_path / "trained.h5")
    (tmp_path / "a.json").write_text(notebook(["", "_1", "_2"]).to_json())
    model = artifacts.rebuild(tmp_path / "a.json", tmp_path / "trained.h5")
    np.testing.assert_allclose(answers(model), answers(trained), atol=1e-6)
    assert "'conv2d_8' was taken for 'conv2d'" in capsys.readouterr().err


def test_weights_of_another_shape_are_refused(apart, tmp_path):
    (tmp_path / "a.json").write_text(keras.Sequential([keras.Input((8, 8, 3)), layers.Dense(4, name="d")]).to_json())
    keras.Sequential([keras.Input((8, 8, 3)), layers.Dense(5, name="d")]).save(tmp_path / "a.h5")
    with pytest.raises(ConfigError, match="must have the shapes.*\\(3, 5\\).*'d', which needs .*\\(3, 4\\)"):
        artifacts.rebuild(tmp_path / "a.json", tmp_path / "a.h5")


@pytest.mark.parametrize("frozen_when", ["described", "stored"])
def test_what_was_frozen_when_does_not_swap_scales_and_statistics(frozen_when, tmp_path):
    inner = moved(functional())
    model = keras.Sequential([keras.Input((8, 8, 3)), inner, layers.Dense(3)])
    inner.trainable = frozen_when == "described"
    (tmp_path / "a.json").write_text(model.to_json())
    inner.trainable = not inner.trainable
    model.save(tmp_path / "a.h5")
    received = answers(artifacts.rebuild(tmp_path / "a.json", tmp_path / "a.h5"))
    np.testing.assert_allclose(received, answers(model), atol=1e-6)


def test_a_name_that_says_another_format_than_the_content_loads(apart, tmp_path):
    folder, expected = apart
    (tmp_path / "a.keras").write_bytes((folder / "whole.h5").read_bytes())  # as Keras before 2.12 wrote it
    (tmp_path / "a.h5").write_bytes((folder / "whole.keras").read_bytes())
    for name in ("a.keras", "a.h5"):
        model = artifacts.load(tmp_path / name)
        np.testing.assert_allclose(answers(model), expected, atol=1e-6)
        assert artifacts.written_by(tmp_path / name) == f"Keras {keras.__version__}"


# Subclassed models ----------------------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    """A model whose layers only its code connects."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.flat, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, inputs):
        return self.dense(self.flat(inputs))


@pytest.mark.parametrize("registered", [False, True])
def test_a_subclassed_model_is_refused_for_its_code(registered, tmp_path):
    kind = keras.saving.register_keras_serializable("own")(Subclassed) if registered else Subclassed
    (model := kind())(IMAGES)
    model.save(tmp_path / "a.keras")
    with pytest.raises(ConfigError, match="a subclassed model, Subclassed, whose code is not in the file.*ONNX"):
        artifacts.load(tmp_path / "a.keras")


def test_a_stock_layer_s_name_does_not_hide_a_class_of_its_own(tmp_path):
    own = {
        "class_name": "Conv2D",
        "config": {"name": "c"},
        "module": "keras.layers",
        "registered_name": "Custom>Conv2D",
    }
    with pytest.raises(ConfigError, match="'c' \\(Conv2D\\), which is a class"):
        safe_loading.to_keras3({"class_name": "Sequential", "config": {"name": "s", "layers": [own]}})


def test_weights_without_an_architecture_are_refused_with_what_to_do(apart):
    for name in ("legacy.h5", "alone.weights.h5"):
        with pytest.raises(ConfigError, match="weights alone.*to_json.*subclassed model"):
            artifacts.load(apart[0] / name)


def test_a_saved_model_folder_is_refused_for_its_program(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"")
    for load in (artifacts.load, inference.load):
        with pytest.raises(ConfigError, match="a SavedModel folder.*tf2onnx.convert"):
            load(tmp_path / "m")
