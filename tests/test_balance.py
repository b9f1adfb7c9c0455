"""Classes of different sizes: what is said, what stands beside accuracy, and weights by class."""

import csv
import dataclasses
import json

import keras
import numpy as np
import pytest
from helpers import noise
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from cifar_keras import metrics, runner
from cifar_keras.config import ConfigError, Experiment, RunConfig, Stage, Training
from cifar_keras.data.base import Dataset, Split
from cifar_keras.models.backbones import BACKBONES, Backbone
from cifar_keras.models.zoo import MODELS, build
from cifar_keras.options import Options
from cifar_keras.training.optim import CrossEntropy
from cifar_keras.training.train import Resume, class_weights, fit


def test_balanced_accuracy_is_that_of_scikit_learn():
    random = np.random.RandomState(0)
    labels, predicted = random.choice(3, 200, p=[0.8, 0.15, 0.05]), random.randint(0, 3, 200)
    matrix = metrics.confusion(labels, np.eye(3)[predicted])
    assert metrics.balanced_accuracy(matrix) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_balanced_accuracy_of_naming_the_largest_class_is_chance():
    matrix = np.array([[19, 0], [1, 0]])
    assert metrics.balanced_accuracy(matrix) == 0.5
    assert metrics.majority_share(matrix.sum(axis=1)) == 0.95
    assert metrics.balanced_accuracy([[4, 0], [0, 0]]) == 1.0  # a class without images is passed over
    assert np.isnan(metrics.balanced_accuracy([[0, 0], [0, 0]]))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([200, 3], True),
        ([120, 100], False),  # a fifth
        ([121, 100], True),
        ([6, 5, 5], False),
        ([2, 1, 1], False),  # what splitting equal classes leaves
        ([1, 0, 1], False),
        ([2, 0, 1], True),
        ([7, 7], False),
    ],
)
def test_classes_are_imbalanced_where_they_differ_by_more_than_a_fifth(counts, expected):
    assert metrics.imbalanced(np.array(counts)) is expected


def test_class_weights_are_those_of_scikit_learn_and_their_mean_over_the_images_is_one():
    labels = np.repeat(np.arange(3), [200, 50, 3])
    weights = class_weights(labels, classes=3)
    assert list(weights.values()) == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1.0)


def test_a_class_without_training_images_takes_no_weight_from_the_others():
    assert class_weights(np.array([0, 0, 0, 2]), classes=3) == {0: 4 / 6, 1: 0.0, 2: 2.0}


ROW = dataclasses.replace(MODELS["scratch_cnn"], backbone="tiny", head="plain", augmentation=())
BALANCED = Training("tiny", (Stage(2, 1e-2, schedule="constant"),), batch_size=16, class_weights="balanced")


def tiny(x, *, momentum):
    return keras.layers.Conv2D(4, 3, strides=4, activation="relu", name="conv")(x)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch, tmp_path):
    monkeypatch.setitem(BACKBONES, "tiny", Backbone(tiny))
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "cache"))


def rare(count, *, seed=0):
    """Noise, of which a sixteenth is of the second class and bright."""
    split = noise(count, seed=seed)
    labels = (np.arange(count) % 16 == 5).astype("int32")
    images = np.where(labels[:, None, None, None], split.images // 2 + 128, split.images // 2)
    return Split(images.astype("uint8"), labels)


RARE = Dataset("rare", "rare", "0" * 64, ("dark", "bright"), rare(64), rare(32, seed=1), rare(32, seed=2))


def trained(folder, training, data=RARE):
    model = build(ROW, image_shape=(32, 32, 3), classes=2, steps=8, seed=0)
    resume = Resume(folder)
    progress = resume.load("{}")
    fit(model, ROW, data, training, seed=0, resume=resume, progress=progress)
    return model, progress


def one_step(optimizer, **changes):
    """A recipe of one step over all of `RARE`."""
    changes = {"batch_size": 64, "optimizer": optimizer, "stages": (Stage(1, 1e-2, schedule="constant"),)} | changes
    return dataclasses.replace(BALANCED, **changes)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_weighted_one_computed_by_hand(tmp_path, smoothing):
    """60 dark images weigh 64 / (2 x 60), 4 bright ones 64 / (2 x 4)."""
    logits = build(ROW, image_shape=(32, 32, 3), classes=2, steps=8, seed=0).predict(RARE.train.images, verbose=0)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.eye(2)[RARE.train.labels] * (1 - smoothing) + smoothing / 2
    losses = -(targets * logs).sum(axis=1)
    weights = np.where(RARE.train.labels == 1, 64 / 8, 64 / 120)
    model, progress = trained(tmp_path, one_step("sgd", label_smoothing=smoothing))
    assert progress.history["loss"] == pytest.approx([np.mean(weights * losses)], rel=1e-4)
    assert np.mean(weights * losses) != pytest.approx(np.mean(losses), rel=1e-2)  # else it would show nothing
    val = CrossEntropy(smoothing)(RARE.val.labels, model.predict(RARE.val.images, verbose=0))
    assert progress.history["val_loss"] == pytest.approx([float(val)], rel=1e-4)  # val stays unweighted


slowly = pytest.mark.slow


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=slowly), pytest.param("adamw", marks=slowly)])
def test_every_optimiser_takes_the_step_that_repeating_the_rare_images_would_make(tmp_path, optimizer):
    """Each bright image 15 times: the plain mean over 120 images has the weighted mean's gradient."""
    again = np.concatenate([np.flatnonzero(RARE.train.labels == 0), np.repeat(np.flatnonzero(RARE.train.labels), 15)])
    more = Split(RARE.train.images[again], RARE.train.labels[again])
    weighted, _ = trained(tmp_path / "a", one_step(optimizer))
    plain = one_step(optimizer, class_weights=None, batch_size=120)
    repeated, _ = trained(tmp_path / "b", plain, dataclasses.replace(RARE, train=more))
    for one, other in zip(weighted.get_weights(), repeated.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


@slowly
def test_muon_takes_weights_too(tmp_path):
    """Its rates follow the batch size, so that repeated images take another step: here the heads merely differ."""
    weighted, progress = trained(tmp_path / "a", one_step("muon"))
    plain, _ = trained(tmp_path / "b", one_step("muon", class_weights=None))
    (one, _), (other, _) = (model.layers[-1].get_weights() for model in (weighted, plain))
    assert np.isfinite(one).all() and np.abs(one - other).max() > 1e-6 and progress.epochs == 1


@slowly
def test_a_weighted_run_resumed_equals_the_unbroken_one(tmp_path, monkeypatch):
    whole, progress = trained(tmp_path / "a", BALANCED)
    save = Resume.save

    def save_and_die(self, model, progress):
        save(self, model, progress)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Resume, "save", save_and_die)
        trained(tmp_path / "b", BALANCED)
    resumed, again = trained(tmp_path / "b", BALANCED)
    assert again.history["loss"] == pytest.approx(progress.history["loss"], abs=1e-6)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_recipe_without_weights_keeps_the_identity_that_it_had():
    config = {field.name: None for field in dataclasses.fields(RunConfig)} | {"row": {}}
    plain = RunConfig(**config | {"training": dataclasses.replace(BALANCED, class_weights=None)})
    weighted = RunConfig(**config | {"training": BALANCED})
    assert "class_weights" not in json.loads(plain.identity)["training"]
    assert json.loads(weighted.identity)["training"]["class_weights"] == "balanced"
    with pytest.raises(ConfigError, match="`class_weights` must be one of None, balanced. Received: 'sqrt'"):
        dataclasses.replace(BALANCED, class_weights="sqrt")


def test_class_weights_are_part_of_a_runs_name_and_skipping_is_not():
    assert Options(class_weights="balanced", skip_unreadable=True).changes() == {"class-weights": "balanced"}


EXPERIMENT = Experiment(99, "frozen", {"best": dataclasses.replace(BALANCED, class_weights=None, model="scratch_cnn",
    override={"backbone": "tiny", "trainable": "head", "head": "probe", "augmentation": ()})})  # fmt: skip


def folder_of(root, counts):
    """A folder of dark cats and bright dogs, so many of each."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.RandomState(1000 * number + i).randint(0, 128, (16, 16, 3)) + 127 * number
            Image.fromarray(pixels.astype("uint8")).save(root / name / f"{i:03}.png")
    return str(root)


def run(tmp_path, dataset, **options):
    plain = dict(variant="best", budget="full", dataset=dataset, weights="none", seed=0, root=str(tmp_path / "root"))
    return runner.run(EXPERIMENT, Options(**plain | options))


def test_an_imbalanced_run_warns_at_the_start_and_puts_balanced_accuracy_beside_accuracy(tmp_path, capsys):
    """200 cats and 3 dogs once gave 95% without a dog among the test images."""
    data = folder_of(tmp_path / "pets", {"cat": 100, "dog": 3})
    (tmp_path / "pets" / "cat" / "000.png").write_bytes(b"")
    (tmp_path / "pets" / "dog" / "a.svg").touch()
    record = run(tmp_path, data, skip_unreadable=True)
    out = capsys.readouterr().out
    assert "classes differ in size: 81 training images of cat, 1 of dog" in out
    assert "would score 90.0% on test; `--class-weights balanced`" in out
    assert "1 file left out: 1 .svg" in out and "1 damaged image left out: cat/000.png" in out
    assert record["skipped"] == {"count": 1, "files": ["cat/000.png"]}
    assert record["test_n"] == 10 and record["majority_share"] == 0.9
    cat, dog = record["class_accuracy"]
    assert record["balanced_accuracy"] == pytest.approx((cat + dog) / 2)
    line = f"n=10  balanced {record['balanced_accuracy']:.4f}, largest class 90.0% of test"
    assert line in out.splitlines()[-1]
    with open(tmp_path / "root" / "results" / "results.csv") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["balanced_accuracy"]), row["majority_share"]) == (record["balanced_accuracy"], "0.9")


def test_weights_find_the_rare_class_on_features_of_a_frozen_backbone_too(tmp_path, capsys):
    data = folder_of(tmp_path / "pets", {"cat": 120, "dog": 12})
    record = run(tmp_path, data, class_weights="balanced", epochs=6)
    out = capsys.readouterr().out
    assert "features: " in out and "; `--class-weights" not in out
    assert "class-weights=balanced" in record["run_id"]
    assert record["config"]["training"]["class_weights"] == "balanced"
    assert record["class_accuracy"][1] == 1.0 and record["balanced_accuracy"] > 0.9


def test_a_balanced_run_says_nothing_of_balance(tmp_path, capsys):
    record = run(tmp_path, folder_of(tmp_path / "pets", {"cat": 40, "dog": 42}))
    assert record["balanced_accuracy"] is record["majority_share"] is None and "skipped" not in record
    out = capsys.readouterr().out
    assert "classes differ" not in out and "largest class" not in out


def test_a_dry_run_warns_as_well(tmp_path, capsys):
    run(tmp_path, folder_of(tmp_path / "pets", {"cat": 60, "dog": 2}), dry_run=True)
    out = capsys.readouterr().out
    assert "classes differ in size: 48 training images of cat, 2 of dog" in out
    assert "without a test image: dog" in out
