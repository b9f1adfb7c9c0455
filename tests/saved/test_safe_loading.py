"""Models that Keras 2 wrote load and predict as they did there; what would run stored code is refused by name."""

import copy
import io
import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from cifar_keras.config import ConfigError
from cifar_keras.saved import artifacts, inference, safe_loading

FOLDER = Path(__file__).parent / "keras2"
REFUSED = ("with_lambda", "with_operator")
ARCHIVES = sorted(FOLDER.glob("*.keras"))
LOADABLE = sorted(path for path in FOLDER.glob("*.h5") if not path.stem.endswith(REFUSED) and "alone" not in path.stem)
NOISE = np.random.RandomState(0).randint(0, 256, (4, 32, 32, 3)).astype("uint8") / np.float32(255)  # as they were given


def description(path):
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


@pytest.mark.parametrize("path", LOADABLE, ids=lambda path: path.stem)
def test_a_model_of_keras_2_predicts_as_it_did_there(path):
    expected = np.load(path.with_suffix(".npy"))
    received = artifacts.load(path).predict(NOISE, verbose=0)
    assert np.ptp(expected, axis=1).min() > 0.01, "the file could not show a difference"
    np.testing.assert_allclose(received, expected, atol=1e-6)


def test_both_versions_of_keras_2_are_there():
    assert {path.stem[:6] for path in LOADABLE} == {"tf2.12", "tf2.15"} and len(LOADABLE) >= 7


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)
def test_an_archive_of_keras_2_predicts_as_it_did_there(path):
    expected = np.load(path.with_name(f"{path.stem}_archive.npy"))
    received = artifacts.load(path).predict(NOISE, verbose=0)
    assert np.ptp(expected, axis=1).min() > 0.01, "the file could not show a difference"
    np.testing.assert_allclose(received, expected, atol=1e-3 if path.stem.endswith("half") else 1e-5)  # float16 there
    assert artifacts.written_by(path).startswith(f"Keras {path.stem[2:6]}.")


def test_every_version_that_wrote_archives_of_its_own_kind_is_there():
    assert {path.stem[:6] for path in ARCHIVES} == {"tf2.13", "tf2.14", "tf2.15"} and len(ARCHIVES) >= 8


@pytest.mark.parametrize("weights", sorted(FOLDER.glob("*_alone*.h5")), ids=lambda path: path.stem)
def test_the_weights_of_keras_2_go_with_its_description_in_every_layout_and_name(weights, tmp_path):
    stem = weights.name.partition("_alone")[0]
    (tmp_path / "best.hdf5").write_bytes(weights.read_bytes())
    architecture = FOLDER / f"{stem}_alone.json"
    for path in (weights, tmp_path / "best.hdf5", FOLDER / f"{stem}.keras"):
        received = artifacts.rebuild(architecture, path).predict(NOISE, verbose=0)
        np.testing.assert_allclose(received, np.load(FOLDER / f"{stem}_archive.npy"), atol=1e-5)
    assert artifacts.provenance(weights) is None
    assert artifacts.written_by(tmp_path / "best.hdf5", architecture).startswith(f"Keras {stem[2:6]}.")


@pytest.mark.parametrize(
    ("name", "said"), [("with_lambda", "'lambda' \\(Lambda\\)"), ("with_operator", "SlicingOpLambda")]
)
def test_code_and_operations_are_refused_by_name(name, said):
    with pytest.raises(ConfigError, match=f"{name}.h5 can't be used.*{said}.*--input-scaling"):
        artifacts.load(FOLDER / f"tf2.15_{name}.h5")


def test_rewriting_changes_nothing_given_and_nothing_twice():
    before = description(FOLDER / "tf2.15_transfer.h5")
    kept = copy.deepcopy(before)
    once = safe_loading.to_keras3(before)
    assert before == kept
    assert safe_loading.to_keras3(once) == once


def older(layer_configs):
    """A `Sequential` as Keras 2.2 and before described it: a list, the shape in the first layer."""
    return {"class_name": "Sequential", "config": layer_configs}


def conv(**settings):
    config = {"name": "a", "trainable": True, "filters": 2, "kernel_size": [3, 3], "batch_input_shape": [None, 8, 8, 3]}
    initializer = {"class_name": "VarianceScaling", "config": {"scale": 1.0, "mode": "fan_avg", "dtype": "float32"}}
    return {"class_name": "Conv2D", "config": {**config, "kernel_initializer": initializer, **settings}}


def test_an_older_description_loads():
    norm = {"class_name": "BatchNormalization", "config": {"name": "b", "axis": [3], "epsilon": 1e-3}}
    model = safe_loading.build(safe_loading.to_keras3(older([conv(groups=1), norm])))
    assert model.input_shape == (None, 8, 8, 3) and model.output_shape == (None, 6, 6, 2)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (conv(surprise=3), "'a' \\(Conv2D\\), which has surprise=3"),
        ({"class_name": "Merge", "config": {"name": "m"}}, "'m' \\(Merge\\)"),
        (
            {"class_name": "Own", "config": {"name": "o"}, "registered_name": "mine>Own"},
            "'o' \\(Own\\), which is a class",
        ),
        ({"class_name": "Own", "config": {"name": "o"}, "module": "os"}, "belongs to os"),
        ({"class_name": "Own", "config": {"name": "o"}, "module": "kerasy.layers"}, "belongs to kerasy.layers"),
        ({"class_name": "TFSMLayer", "config": {"name": "t", "filepath": "/x"}}, "TFSMLayer"),
        (conv(activation={"class_name": "function", "module": "keras.utils", "config": "get_file"}), "get_file"),
        (conv(activation={"class_name": "__lambda__", "config": {"value": "x"}}), "__lambda__"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(entry, said):
    with pytest.raises(ConfigError, match=said):
        safe_loading.to_keras3(older([entry]))


class Touch(layers.Layer):
    """A layer whose making would be seen."""

    made = 0

    def __init__(self, **settings):
        Touch.made += 1
        super().__init__(**settings)


def test_a_custom_class_is_refused_in_both_formats_even_where_it_is_registered(tmp_path):
    keras.saving.register_keras_serializable("tests")(Touch)
    model = keras.Sequential([keras.Input((8, 8, 3)), Touch(name="mine"), layers.Flatten(), layers.Dense(2)])
    for name in ("a.keras", "a.h5"):
        model.save(tmp_path / name)
        before = Touch.made
        with pytest.raises(ConfigError, match="\\((tests>)?Touch\\)"):
            artifacts.load(tmp_path / name)
        assert Touch.made == before


def test_a_lambda_in_a_keras_file_is_refused_by_name(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Lambda(lambda x: x / 2, name="half"), layers.Flatten()])
    model.save(tmp_path / "a.keras")
    with pytest.raises(ConfigError, match="a.keras can't be used.*'half' \\(Lambda\\)"):
        artifacts.load(tmp_path / "a.keras")


def test_a_description_larger_than_its_weights_takes_no_memory(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    model.save(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"units": 3', '"units": 30000000000')
    with pytest.raises(ConfigError, match="bytes for 5,7.*damaged or made up"):
        artifacts.load(tmp_path / "a.h5")


def test_a_layer_that_puts_out_too_much_is_refused():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.UpSampling2D(100_000, name="huge")])
    with pytest.raises(ConfigError, match="at most 33,554,432 values.*'huge'"):
        safe_loading.check_size(safe_loading.to_keras3(json.loads(model.to_json())), 10**9)


@pytest.mark.parametrize("name", ["layers.Lambda", "layers.TFSMLayer", "layers.StringLookup"])
def test_a_name_with_dots_leads_nowhere(name):
    with pytest.raises(ConfigError, match="is no name of a layer"):
        safe_loading.checked({"class_name": "Dense", "config": {"activation": {"class_name": name, "module": "keras"}}})


def huge_within():
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.UpSampling2D(3000, name="huge")])
    return keras.Model(inputs := keras.Input((8, 8, 3)), layers.GlobalMaxPooling2D()(inner(inputs)))


def huge_at_its_second_call():
    shared = layers.UpSampling2D(100, name="huge")
    return keras.Model(inputs := keras.Input((8, 8, 3)), layers.GlobalMaxPooling2D()(shared(shared(inputs))))


@pytest.mark.parametrize("make", [huge_within, huge_at_its_second_call])
def test_every_call_of_every_layer_counts(make):
    with pytest.raises(ConfigError, match="at most 33,554,432 values"):
        safe_loading.check_size(safe_loading.to_keras3(json.loads(make().to_json())), 10**9)


def test_a_model_for_any_size_is_checked_for_the_size_it_gets(tmp_path):
    large = layers.UpSampling2D(100, name="huge")(inputs := keras.Input((None, None, 3)))
    keras.Model(inputs, layers.GlobalMaxPooling2D()(large)).save(tmp_path / "a.keras")
    assert inference.load(tmp_path / "a.keras", image_size=4).size == (4, 4)
    with pytest.raises(ConfigError, match="at most 33,554,432 values.*'huge'"):
        inference.load(tmp_path / "a.keras", image_size=64)


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_weights_that_claim_to_be_large_take_no_memory(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3, name="dense")]).save(path)
    if ending == "h5":
        with h5py.File(path, "a") as file:
            _claim_to_be_large(file)
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with h5py.File(weights := io.BytesIO(members["model.weights.h5"]), "a") as file:
            _claim_to_be_large(file)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**members, "model.weights.h5": weights.getvalue()}.items():
                archive.writestr(name, content)
    with pytest.raises(ConfigError, match="weights must unpack to at most .* Received: 800,"):
        artifacts.load(path)


def _claim_to_be_large(file):
    """Puts a dataset without content in place of the first one."""
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    del file[found[0]]
    file.create_dataset(found[0], (200_000_000,), "float32", chunks=(1000,))


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"shape": (3,), "dtype": "float32", "maxshape": (None,), "chunks": (2**28,)}, "at most .* Received: 1,073,"),
        ({"shape": (3,), "dtype": h5py.string_dtype(), "fillvalue": "x" * 1000}, "must be numbers.*/bias"),
    ],
    ids=["chunk", "text"],
)
def test_weights_whose_reading_would_take_far_more_memory_are_refused(stored, said, tmp_path):
    keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3, name="dense")]).save(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if name.endswith("bias") else None)
        del file[found[0]]
        file.create_dataset(found[0], **stored)
    with pytest.raises(ConfigError, match=said):
        artifacts.load(tmp_path / "a.h5")


def test_weights_in_another_file_are_refused(tmp_path):
    keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]).save(tmp_path / "a.h5")
    (tmp_path / "secret").write_bytes(b"0" * 40)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["model_weights"].create_dataset("there", (10,), "float32", external=[(str(tmp_path / "secret"), 0, 40)])
    with pytest.raises(ConfigError, match="must be in the file itself.*/model_weights/there"):
        artifacts.load(tmp_path / "a.h5")


def test_weights_of_other_layers_are_refused(tmp_path):
    def saved(name):
        model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3, name=name)])
        model.save(tmp_path / f"{name}.h5")
        (tmp_path / f"{name}.json").write_text(model.to_json())

    saved("one")
    saved("other")
    with pytest.raises(ConfigError, match="first difference: 'one'"):
        artifacts.rebuild(tmp_path / "one.json", tmp_path / "other.h5")
