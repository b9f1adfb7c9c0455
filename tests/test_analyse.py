"""From a name to figures: what `explain` finds, computes, keeps, leaves out, and refuses."""

import dataclasses
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import noise
from keras import layers
from PIL import Image
from test_config import config

from cifar_keras import artifacts, commands, results
from cifar_keras.config import ConfigError, Limits, Stage, Training
from cifar_keras.datasets import load
from cifar_keras.evaluate import coarse_accuracy
from cifar_keras.explain import analyse
from cifar_keras.paths import Paths
from cifar_keras.zoo import MODELS

SECTIONS = ["errors", "calibration", "gradcam", "activations", "space", "versus"]
TRAINING = Training("scratch_cnn", (Stage(1, 1e-3),))


def model_for(data, *, spatial=True, seed=0, precision="float32"):
    """A tiny classifier of the form that runs save."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input(data.image_shape, dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float32", name="scaling_unit")(x)
    if spatial:
        x = layers.Conv2D(6, 5, strides=3, activation="relu", dtype=precision, name="conv")(x)
        x = layers.GlobalAveragePooling2D(dtype=precision, name="head_pool")(x)
    else:
        x = layers.Dense(6, activation="relu", dtype=precision)(layers.Flatten()(x))
    logits = layers.Dense(len(data.class_names), dtype="float32", name="logits")(x)
    return artifacts.for_inference(keras.Model(inputs, logits))


def finished(root, data, *, key="exp4_scratch", run_id="run-1", name=None, limits=None, variant="best", **model):
    """A finished run as the runner leaves it, without its training. Returns its record."""
    limits = limits or Limits(len(data.train), len(data.val), len(data.test))
    made = config(
        experiment=key, number=int(key[3]), variant=variant, dataset=name or data.slug, fingerprint=data.fingerprint,
        weights="none", limits=limits, training=TRAINING, row=dataclasses.asdict(MODELS["scratch_cnn"]),
    )  # fmt: skip
    paths = Paths.of(made, root)
    network = model_for(data, **model)
    artifacts.save(network, paths, provenance={"run_id": run_id}, history={"epoch": [1]})
    probabilities = network.predict(np.asarray(data.test.images[np.arange(len(data.test))]), verbose=0)
    record = {
        "run_id": run_id, "utc": f"2026-01-01T00:00:0{run_id[-1]}+00:00", "experiment": key, "variant": variant,
        "budget": "full", "model": "scratch_cnn", "dataset": data.label, "fingerprint": data.fingerprint, "seed": 0,
        "weights": "none", "weights_called_for": "none", "status": "finished", "config": json.loads(made.identity),
        "test_accuracy": float(np.mean(probabilities.argmax(axis=1) == data.test.labels)), "test_n": len(data.test),
        "class_names": list(data.class_names), "training_seconds": 9.0, "published_test": None, "epochs": 1,
        "train_images": len(data.train), "val_n": len(data.val), "images_per_second": 10.0, "parameters": 10,
        "parameters_trainable": 10, "peak_memory_mb": 100,
    }  # fmt: skip
    if data.superclass_names:
        record["superclass_of"] = [label // 5 for label in range(100)]
        record["coarse_accuracy"] = coarse_accuracy(data.test.labels, probabilities, np.arange(100) // 5)
    results.write(root, record, predictions=(data.test.labels, probabilities))
    return record


def index(folder):
    return json.loads((folder / "index.json").read_text())


def section(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """Two runs on the embedded images, one of them analysed."""
    root = tmp_path_factory.mktemp("root")
    data = load("shapes", limits=Limits(120, 40, 60))
    record = finished(root, data)
    finished(root, data, key="exp1_frozen", run_id="run-2", seed=1)
    return SimpleNamespace(root=root, data=data, record=record, folder=analyse.explain("exp4", root=root))


def test_every_section_is_made_of_the_images_of_the_run(explained):
    assert index(explained.folder) == {
        "run_id": "run-1", "sections": SECTIONS, "left out": {}, "others": ["run-2"],
    }  # fmt: skip
    assert section(explained.folder, "errors")["numbers"]["accuracy"] == explained.record["test_accuracy"]
    space = section(explained.folder, "space")["numbers"]
    assert (space["training embeddings"], space["test embeddings"], space["channels"]) == (120, 60, 6)
    assert set(section(explained.folder, "versus")["numbers"]["right alone"]) == {
        "exp4_scratch best",
        "exp1_frozen best",
    }


def test_a_run_is_found_by_its_id_its_number_and_its_files(explained):
    for name in ("run-1", "4", "exp4", "exp4_scratch", *explained.root.glob("model_cp/exp4*.keras")):
        assert analyse.find(name, root=explained.root).record["run_id"] == "run-1"
    (h5,) = (path for path in explained.root.glob("Models/*_4_*.h5") if "_custom" not in path.name)
    assert analyse.find(str(h5), root=explained.root).path == h5


def test_what_the_model_makes_of_the_images_is_computed_once(explained, monkeypatch):
    monkeypatch.setattr(analyse, "passed", lambda *_, **__: pytest.fail("computed again"))
    analyse.explain("run-1", root=explained.root, only=("errors",))
    assert index(explained.folder)["sections"] == SECTIONS


def test_a_new_run_renews_the_comparison_alone(explained, monkeypatch):
    made = []
    monkeypatch.setattr(analyse, "explain", lambda run_id, **options: made.append(options.get("only")))
    analyse.refresh("run-1", root=explained.root)
    assert made == []
    finished(explained.root, explained.data, key="exp3_finetune", run_id="run-3", seed=2)
    analyse.refresh("run-1", root=explained.root)
    analyse.refresh("run-3", root=explained.root)
    assert made == [("versus",), None]


def test_the_report_holds_the_analyses(explained, capsys):
    assert commands.report(explained.root) == 0
    page = (explained.root / "results" / "report" / "index.html").read_text()
    assert page.count("Where it fails") >= 2 and "Not analysed" not in page and "macro F1" in page


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("run-9", {}, "RUN must be a run id.*Received: 'run-9'. Runs: .*run-1"),
        ("nowhere.keras", {}, "must be a file. Received: 'nowhere.keras'"),
        ("run-1", {"layer": "typo"}, "`--layer` must be one of conv. Received: 'typo'"),
        ("run-1", {"dataset": "shapes100"}, "must be those of the run, shapes"),
    ],
)
def test_bad_input_is_refused(explained, name, options, said):
    with pytest.raises(ConfigError, match=said):
        analyse.explain(name, root=explained.root, **options)


def test_files_that_are_no_models_of_a_run_are_refused(explained, tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"PK\3\4 no zip")
    with pytest.raises(ConfigError, match="must be a whole saved model"):
        analyse.find(str(tmp_path / "broken.keras"), root=explained.root)
    foreign = tmp_path / "foreign.keras"
    model_for(explained.data).save(foreign)
    with pytest.raises(ConfigError, match="Received: '.*foreign.keras'. Runs"):
        analyse.find(str(foreign), root=explained.root)
    (weights,) = explained.root.glob("Models/*_4_*_custom.h5")
    with pytest.raises(ConfigError, match="weights alone"):
        analyse.find(str(weights), root=explained.root)


def test_an_experiment_stands_for_its_newest_run_whose_model_is_there(tmp_path):
    data = load("shapes", limits=Limits(40, 20, 20))
    finished(tmp_path, data, run_id="run-1")
    older = analyse.saved_model("exp4", root=tmp_path)
    finished(tmp_path, data, run_id="run-2", variant="wide")
    newer = analyse.saved_model("exp4", root=tmp_path)
    assert newer != older and newer == analyse.saved_model("run-2", root=tmp_path)
    for path in tmp_path.glob("M*/*wide*"):
        path.unlink()
    newer.unlink()
    assert analyse.saved_model("exp4", root=tmp_path) == older
    with pytest.raises(ConfigError, match="The model of run-2 must be"):
        analyse.saved_model("run-2", root=tmp_path)


def test_another_model_under_the_runs_name_is_refused(tmp_path):
    data = load("shapes", limits=Limits(60, 20, 40))
    record = finished(tmp_path, data)
    results.write(tmp_path, record | {"test_accuracy": record["test_accuracy"] + 0.1})
    with pytest.raises(ConfigError, match="images or the model are others"):
        analyse.explain("run-1", root=tmp_path)


def test_a_model_without_places_in_bfloat16_alone_leaves_out_what_it_can_not_have(tmp_path):
    data = load("shapes", limits=Limits(60, 20, 40))
    finished(tmp_path, data, spatial=False, precision="mixed_bfloat16")
    found = index(analyse.explain("run-1", root=tmp_path))
    assert found["sections"] == ["errors", "calibration", "space"]
    assert "no layer with height and width" in found["left out"]["gradcam"]
    assert "no other run" in found["left out"]["versus"]


def test_mixed_precision_has_every_section_and_old_ones_are_swept(tmp_path):
    data = load("shapes", limits=Limits(60, 20, 40))
    finished(tmp_path, data, precision="mixed_bfloat16")
    (stale := tmp_path / "results" / "explain" / "run-1" / "versus_agreement.svg").parent.mkdir(parents=True)
    stale.write_text("<svg/>")
    found = index(analyse.explain("run-1", root=tmp_path))
    assert found["sections"] == SECTIONS[:-1] and not stale.exists()


def test_a_hundred_classes_with_superclasses(tmp_path):
    data = load("shapes100", limits=Limits(200, 100, 200))
    record = finished(tmp_path, data)
    folder = analyse.explain("run-1", root=tmp_path)
    numbers = section(folder, "errors")["numbers"]
    assert numbers["superclass accuracy"] == pytest.approx(record["coarse_accuracy"])
    assert (folder / "errors_superclasses.svg").is_file()


def test_a_folder_of_another_size_with_awkward_names(tmp_path):
    names = ("$x_{$ and $", "犬", "<b>", "_hidden", "a very long name of a class that fits nowhere")
    for label, name in enumerate(names):
        (tmp_path / "images" / name).mkdir(parents=True)
        for place, image in enumerate(noise(12, size=64, seed=label).images):
            Image.fromarray(image).save(tmp_path / "images" / name / f"{place}.png")
    data = load(str(tmp_path / "images"))
    finished(tmp_path, data)
    with pytest.raises(ConfigError, match="`--dataset` must name the folder of images"):
        analyse.explain("run-1", root=tmp_path)
    folder = analyse.explain("run-1", root=tmp_path, dataset=str(tmp_path / "images"))
    assert index(folder)["sections"] == SECTIONS[:-1]
    assert "$x_{$ and $" in (folder / "errors_confusion.svg").read_text()


def test_classes_and_images_per_class_are_those_of_the_run(tmp_path):
    chosen = load("shapes", classes="ring,star,tee", limits=Limits(90, 30, 30))
    record = finished(tmp_path, chosen)
    found = analyse.find("run-1", root=tmp_path).dataset
    assert found.class_names == chosen.class_names and record["dataset"] == found.label
    record["config"]["training"]["per_class"] = 7
    results.write(tmp_path, record)
    drawn = analyse.find("run-1", root=tmp_path).dataset
    expected = chosen.with_per_class(7, seed=0)
    np.testing.assert_array_equal(np.asarray(drawn.train.images), np.asarray(expected.train.images))
