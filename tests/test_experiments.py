"""Each experiment end to end on the embedded set, with the real models."""

import ast
import csv
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import EXPERIMENT_FILES, experiment_of
from helpers import record as run_record
from PIL import Image

from cifar_keras import results, runner
from cifar_keras.config import (
    ConfigError,
    Experiment,
    HeldError,
    Limits,
    RunFailedError,
    Stage,
    Training,
    with_learning_rate,
)
from cifar_keras.data import load
from cifar_keras.models.backbones import BACKBONES, Backbone
from cifar_keras.models.zoo import MODELS
from cifar_keras.options import Options
from cifar_keras.saved import artifacts
from cifar_keras.saved.inference import augmented_probabilities, probabilities
from cifar_keras.utils import runtime
from cifar_keras.utils.files import lock

# Where there is no `best`.
VARIANTS = {5: "unit_32_training", 6: "regularized", 7: "audit", 8: "baseline", 9: "finetune_50", 10: "cutmix"}
VARIANTS |= {11: "prune_90", 12: "wrn_16_4"}


def stem_of(experiment):
    """What `finished` names its files."""
    variant = f"_{VARIANTS[experiment.number]}" if experiment.number in VARIANTS else ""
    return f"exp{experiment.number}_shapes{variant}_demo_epochs=2_limit=24"


def options(root, **values):
    plain = dict(variant="best", budget="demo", seed=0, root=str(root), limit=24, epochs=2)
    return Options(**(plain | values))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module", params=EXPERIMENT_FILES, ids=lambda path: path.stem)
def finished(request, root):
    """An experiment's record, run once for all tests of this module."""
    experiment = experiment_of(request.param)
    return experiment, runner.run(experiment, options(root, variant=VARIANTS.get(experiment.number, "best")))


def test_the_run_leaves_a_record_models_history_predictions_and_pictures(finished, root):
    experiment, record = finished
    assert record["status"] == "finished" and record["epochs"] == 2
    assert 0 <= record["test_accuracy"] <= 1 and record["test_n"] == 24
    stem = stem_of(experiment)
    assert (root / "model_cp" / f"{stem}.model.keras").is_file()
    assert not (root / "model_cp" / f"{stem}.resume").exists()
    for ending in (".h5", "_custom.h5", "_architecture.json", "_history.json"):
        name = f"cifar10_model_{stem.removeprefix('exp')}{ending}"
        assert (root / "Models" / name).is_file()
    for kind in ("samples", "labels", "curves", "confusion"):
        assert (root / "results" / "figures" / f"{stem}_{kind}.png").read_bytes().startswith(b"\x89PNG")
    with open(root / "results" / "results.csv") as file:
        row = next(row for row in csv.DictReader(file) if row["run_id"] == record["run_id"])
    assert row["experiment"] == experiment.key and row["dataset"] == "shapes (synthetic)"
    assert float(row["test_accuracy"]) == record["test_accuracy"]
    optional = {"tta_accuracy", "coarse_accuracy", "last_train_accuracy", "last_test_accuracy", "git_commit"}
    optional |= {"balanced_accuracy", "majority_share"}  # empty where classes are alike
    expected = set(results.COLUMNS) - optional - {"published_train", "published_val", "published_test"}
    assert not {name for name in expected if row[name] == ""}


def test_stored_predictions_are_those_of_the_saved_model(finished, root):
    experiment, record = finished
    stem = stem_of(experiment)
    model = artifacts.load(root / "model_cp" / f"{stem}.model.keras")
    test = load("shapes", limits=Limits(24, 24, 24)).test
    predicted = probabilities(model, test.images, batch_size=8)
    with np.load(root / "results" / "predictions" / f"{record['run_id']}.npz") as stored:
        np.testing.assert_allclose(stored["probabilities"], predicted, atol=1e-3)
        np.testing.assert_array_equal(stored["labels"], test.labels)
    assert record["test_accuracy"] == np.mean(predicted.argmax(axis=1) == test.labels)


def test_a_finished_run_is_not_repeated(finished, root, capsys):
    experiment, record = finished
    again = runner.run(experiment, options(root, variant=record["variant"]))
    assert again["run_id"] == record["run_id"]
    assert "--fresh" in capsys.readouterr().out


@pytest.mark.parametrize("path", EXPERIMENT_FILES, ids=lambda path: path.stem)
def test_an_experiment_reads_like_a_notebook_entry(path):
    experiment = experiment_of(path)
    assert path.stem == experiment.key
    document = ast.get_docstring(ast.parse(path.read_text()))
    assert document.splitlines()[0].endswith("?")
    for line in ("Run      ", "Result   ", "Compare  "):
        assert f"\n{line}" in document
    assert {training.model for training in experiment.variants.values()} <= set(MODELS)
    if experiment.number <= 4:
        assert set(experiment.variants) >= {"best", "published"}
        assert "e assume " in " ".join(document.split())


def test_published_variants_run_too(root):
    scratch = experiment_of(EXPERIMENT_FILES[3])
    record = runner.run(scratch, options(root, variant="published"))
    assert record["variant"] == "published" and record["tta_accuracy"] is None


def test_dry_run_trains_and_writes_nothing(tmp_path, capsys):
    runner.run(experiment_of(EXPERIMENT_FILES[2]), options(tmp_path, dry_run=True))
    text = capsys.readouterr().out
    assert '"variant":' in text and "23,612,310 total, 23,555,082 trainable" in text
    assert "train 24, val 24, test 24" in text and "exp3_shapes_demo" in text
    assert not list(tmp_path.rglob("*"))


def test_the_same_name_with_another_configuration_is_refused(root, monkeypatch):
    scratch = experiment_of(EXPERIMENT_FILES[3])
    runner.run(scratch, options(root))
    monkeypatch.setitem(scratch.variants, "best", with_learning_rate(scratch.variants["best"], 0.1))
    with pytest.raises(ConfigError, match="another configuration.*--fresh"):
        runner.run(scratch, options(root))


def test_a_fresh_run_of_a_changed_recipe_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    scratch = experiment_of(EXPERIMENT_FILES[3])
    first = runner.run(scratch, options(tmp_path))
    monkeypatch.setitem(scratch.variants, "best", with_learning_rate(scratch.variants["best"], 0.1))
    save = runner.Resume.save

    def save_and_stop(self, model, progress):
        save(self, model, progress)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner.Resume, "save", save_and_stop)
        runner.run(scratch, options(tmp_path, fresh=True))
    stopped = json.loads(next(tmp_path.glob("model_cp/*.resume/state.json")).read_text())
    record = runner.run(scratch, options(tmp_path))
    assert record["run_id"] == stopped["run_id"] and stopped["epochs"] == 1
    assert record["config"] != first["config"] and record["epochs"] == 2


@pytest.fixture
def small(monkeypatch):
    """An experiment of a second's training."""

    def tiny(x, *, momentum):
        return keras.layers.Conv2D(4, 3, strides=4, activation="relu", name="conv")(x)

    monkeypatch.setitem(BACKBONES, "tiny", Backbone(tiny))
    override = {"backbone": "tiny", "head": "plain", "augmentation": ()}
    yield Experiment(98, "small", {"best": Training("scratch_cnn", (Stage(2, 1e-2),), override, 8, "adam")})
    keras.config.set_dtype_policy("float32")


def on_a_machine_that_prefers(precision, patch):
    patch.setattr(runtime, "choose_precision", lambda asked, **_: (precision if asked == "auto" else asked, "so"))


def test_a_run_that_continues_on_another_machine_keeps_its_precision(small, tmp_path, monkeypatch, capsys):
    def save_and_stop(self, model, progress, save=runner.Resume.save):
        save(self, model, progress)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        on_a_machine_that_prefers("mixed_float16", patch)
        patch.setattr(runner.Resume, "save", save_and_stop)
        runner.run(small, options(tmp_path))
    on_a_machine_that_prefers("float32", monkeypatch)
    runner.run(small, options(tmp_path, dry_run=True))
    assert "continues in mixed_float16, as it began; `--precision auto` chooses float32" in capsys.readouterr().out
    record = runner.run(small, options(tmp_path))
    assert record["precision"] == record["config"]["precision"] == "mixed_float16" and record["epochs"] == 2
    assert capsys.readouterr().out.count("continues in mixed_float16") == 1
    assert runner.run(small, options(tmp_path))["run_id"] == record["run_id"]  # finished, on either machine
    assert runner.run(small, options(tmp_path, fresh=True))["precision"] == "float32"


def test_a_precision_stands_in_names_where_it_is_given_and_is_no_override_in_tables(small, tmp_path):
    record = runner.run(small, options(tmp_path, precision="mixed_bfloat16"))
    assert "_precision=mixed_bfloat16_" in record["run_id"]
    with open(tmp_path / "results" / "results.csv") as file:
        (row,) = csv.DictReader(file)
    assert (row["precision"], row["overrides"]) == ("mixed_bfloat16", "epochs=2, limit=24")


def test_a_run_under_way_is_not_started_twice(root):
    scratch = experiment_of(EXPERIMENT_FILES[3])
    with lock(root / "model_cp" / "exp4_shapes_demo_epochs=2_limit=24.model.keras"), pytest.raises(HeldError):
        runner.run(scratch, options(root))


def test_a_failed_run_is_recorded_as_such(tmp_path, monkeypatch):
    def diverging(*arguments, **options):
        raise RunFailedError("The loss became nan.")

    monkeypatch.setattr(runner, "fit", diverging)
    with pytest.raises(RunFailedError):
        runner.run(experiment_of(EXPERIMENT_FILES[3]), options(tmp_path))
    (record,) = results.read(tmp_path)
    assert record["status"] == "failed" and record["why"] == "The loss became nan."
    assert not list((tmp_path / "model_cp").glob("*.keras"))


def test_what_failed_first_is_what_is_said(tmp_path, monkeypatch):
    def diverging(*arguments, **options):
        (tmp_path / "results" / "runs").mkdir(parents=True)
        (tmp_path / "results" / "runs" / "broken.json").touch()  # the failure can't be recorded
        raise RunFailedError("The loss became nan.")

    monkeypatch.setattr(runner, "fit", diverging)
    with pytest.raises(RunFailedError, match="nan"):
        runner.run(experiment_of(EXPERIMENT_FILES[3]), options(tmp_path))


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at most the number of training images, 24"):
        runner.run(experiment_of(EXPERIMENT_FILES[3]), options(tmp_path, batch_size=25))


def test_a_hundred_classes_of_another_size_run_without_special_cases(tmp_path):
    random = np.random.RandomState(0)
    for name in range(100):
        (tmp_path / "data" / f"class{name:02d}").mkdir(parents=True)
        for number in range(3):
            image = random.randint(0, 256, (40, 30, 3)).astype("uint8")
            Image.fromarray(image).save(tmp_path / "data" / f"class{name:02d}" / f"{number}.png")
    small = options(tmp_path, budget="full", limit=100, epochs=1, dataset=str(tmp_path / "data"))
    record = runner.run(experiment_of(EXPERIMENT_FILES[3]), small)
    assert record["dataset"] == "data" and record["test_n"] == 100  # an image of each class
    assert record["published_test"] is None
    model = artifacts.load(next((tmp_path / "model_cp").glob("*.keras")))
    assert model.input_shape == (None, 30, 30, 3) and model.output_shape == (None, 100)


def test_transfer_from_a_saved_backbone_is_part_of_the_name(root):
    frozen, tuned = experiment_of(EXPERIMENT_FILES[0]), experiment_of(EXPERIMENT_FILES[2])
    runner.run(tuned, options(root))
    path = root / "model_cp" / "exp3_shapes_demo_epochs=2_limit=24.model.keras"
    record = runner.run(frozen, options(root, weights=str(path)))
    assert record["weights"].startswith("exp3_shapes_demo-")
    assert f"weights={record['weights']}" in record["run_id"]


def test_test_time_augmentation_averages_six_views(root):
    model = artifacts.load(root / "model_cp" / "exp4_shapes_demo_epochs=2_limit=24.model.keras")
    images = load("shapes", limits=Limits(1, 1, 4)).test.images
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    rest, up_left, down_right = images, padded[:, :32, :32], padded[:, 2:, 2:]
    expected = sum(
        weight * (model.predict(view, verbose=0) + model.predict(view[:, :, ::-1], verbose=0))
        for view, weight in ((rest, 0.25), (up_left, 0.125), (down_right, 0.125))
    )
    np.testing.assert_allclose(augmented_probabilities(model, images, batch_size=3), expected, atol=1e-5)


def test_an_experiment_file_runs_from_any_folder(tmp_path):
    command = [
        sys.executable,
        str(EXPERIMENT_FILES[3]),
        "--budget",
        "demo",
        "--limit",
        "24",
        "--epochs",
        "1",
        "--root",
        "here",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout and done.stdout.splitlines()[-1].startswith("exp4_scratch  0.")
    assert done.stderr == ""
    (record,) = (tmp_path / "here" / "results" / "runs").glob("*.json")
    assert json.loads(record.read_text())["config"]["dataset"] == "shapes"
    assert os.listdir(tmp_path) == ["here"]


def test_a_run_ends_with_one_line(tmp_path):
    first = run_record(run_id="a", utc="2026-01-01T00:00:00+00:00", test_accuracy=0.9271)
    second = run_record(run_id="b", utc="2026-01-02T00:00:00+00:00", test_accuracy=0.9312)
    for one in (first, second):
        results.write(tmp_path, one)
    assert runner.last_line(second, tmp_path) == (
        "exp4_scratch  0.9312 [0.9261, 0.9360] n=10000  published 0.72  "
        "previous run +0.0041 (not distinguishable)  42 min"
    )
    unpublished = first | {"published_test": None, "training_seconds": 30.0}
    assert runner.last_line(unpublished, tmp_path) == "exp4_scratch  0.9271 [0.9218, 0.9320] n=10000  30 s"


def test_an_experiment_without_a_best_variant_ends_with_its_own_table_and_figure(finished, root):
    experiment, record = finished
    if experiment.summary:
        name = stem_of(experiment).replace(f"_{record['variant']}", "")
        text = (root / "results" / f"{name}.md").read_text()
        assert f"| {record['variant']} " in text and f"{100 * record['test_accuracy']:.1f}%" in text
        assert (root / "results" / "figures" / f"{name}_summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_epoch_is_scored_beside_the_selected_one_and_an_audit_follows_test(finished):
    experiment, record = finished
    if experiment.variants[record["variant"]].also_score is None:
        assert "last_test_accuracy" not in record and "test_accuracy" not in record["history"]
        return
    assert 0 <= record["last_train_accuracy"] <= 1
    if followed := record["history"].get("test_accuracy"):
        assert len(followed) == 2 and followed[-1] == pytest.approx(record["last_test_accuracy"])
        assert followed[record["best_epoch"] - 1] == pytest.approx(record["test_accuracy"])


def test_a_baseline_from_scratch_ignores_the_given_weights(root):
    transfer = experiment_of(next(path for path in EXPERIMENT_FILES if path.stem.startswith("exp9")))
    source = runner.run(experiment_of(EXPERIMENT_FILES[3]), options(root))
    path = str(root / "model_cp" / "exp4_shapes_demo_epochs=2_limit=24.model.keras")
    classes = {"classes": "ring,star,tee", "weights": path}
    scratch = runner.run(transfer, options(root, variant="scratch_50", **classes))
    moved = runner.run(transfer, options(root, variant="probe_50", **classes))
    assert source["weights"] == scratch["weights"] == "none" and "weights" not in scratch["config"]["overrides"]
    assert moved["weights"].startswith("exp4_shapes") and moved["config"]["dataset"] == "shapes-ring+star+tee"
    assert moved["config"]["classes"] == ["ring", "star", "tee"]
    older = json.loads(json.dumps(moved))
    del older["config"]["classes"]  # which versions before did not record
    results.write(root, older)
    assert runner.run(transfer, options(root, variant="probe_50", **classes))["run_id"] == moved["run_id"]
    (summary,) = (root / "results").glob("exp9_shapes-ring*.md")
    assert "from scratch" in summary.read_text() and "paired t" not in summary.read_text()  # one seed


def test_a_network_that_must_be_moved_from_somewhere_says_from_where(tmp_path):
    transfer = experiment_of(next(path for path in EXPERIMENT_FILES if path.stem.startswith("exp9")))
    with pytest.raises(ConfigError, match=r"--weights.*model_cp/<run's name>\.model\.keras"):
        runner.run(transfer, options(tmp_path, variant="probe", budget="full", dataset="shapes"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENT_FILES[4:], ids=lambda path: path.stem)
def test_every_variant_runs(path, tmp_path):
    experiment = experiment_of(path)
    for variant in experiment.variants:
        assert runner.run(experiment, options(tmp_path, variant=variant))["status"] == "finished"
    if experiment.summary is None:
        return
    (summary,) = (tmp_path / "results").glob(f"exp{experiment.number}_shapes*.md")
    table = summary.read_text().split("##")[0]
    assert "| - " not in "\n".join(line.split("|", 3)[3] for line in table.splitlines() if line.count("|") > 4)
