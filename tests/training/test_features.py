"""Features of a frozen backbone: the same numbers as through the whole model, once, whatever happens to the files."""

import dataclasses
import functools
import importlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
from helpers import noise

from cifar_keras import runner
from cifar_keras.config import ConfigError, Experiment, RunFailedError, Stage, Training
from cifar_keras.data import augment
from cifar_keras.data.augment import augmented
from cifar_keras.data.base import Dataset
from cifar_keras.data.draws import compiled
from cifar_keras.data.pipeline import epoch_order, train_pipeline
from cifar_keras.models.backbones import BACKBONES, Backbone
from cifar_keras.models.zoo import MODELS, build
from cifar_keras.options import Options
from cifar_keras.saved import artifacts
from cifar_keras.training import features, train
from cifar_keras.training.train import Resume, fit
from cifar_keras.utils.files import lock
from cifar_keras.utils.paths import PROJECT

ROW = dataclasses.replace(MODELS["scratch_cnn"], backbone="tiny", trainable="head", head="probe", augmentation=())
SHIFTED = dataclasses.replace(ROW, augmentation=("shift", "colour_jitter"))  # no two views alike by chance
TRAINING = Training("tiny", stages=(Stage(5, 1e-2),), batch_size=16)


def tiny(x, *, momentum):
    x = keras.layers.Conv2D(6, 3, strides=4, name="conv")(x)
    x = keras.layers.BatchNormalization(momentum=momentum, name="bn")(x)
    return keras.layers.Activation("relu", name="relu")(x)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch, tmp_path):
    """The backbone, a cache of the test's own, and blocks of ten images: five of train, the last of them shorter."""
    monkeypatch.setitem(BACKBONES, "tiny", Backbone(tiny))
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "evaluation_batch", lambda *_: 10)


def model_of(row=ROW, *, seed=0, steps=12):
    model = build(row, image_shape=(32, 32, 3), classes=10, steps=steps, seed=seed)
    statistics = np.random.RandomState(seed)
    model.get_layer("bn").set_weights([statistics.uniform(0.5, 1.5, 6).astype("float32") for _ in range(4)])
    return model


def extract(data, folder, *, row=ROW, training=TRAINING, model=None, seed=0, deterministic=False):
    """Extracts features for a run. Returns `(parts for fit, progress, resume)`."""
    resume = Resume(folder)
    progress = resume.load("{}")
    machine = {"seed": seed, "deterministic": deterministic}
    whole = model or model_of(row)
    parts = features.extracted(whole, row, data, training, **machine, resume=resume, progress=progress)
    return parts, progress, resume


def stored(tmp_path, split="train"):
    """The whole files of a split."""
    return sorted((tmp_path / "cache" / "features").glob(f"*-{split}-*.npy"))


@pytest.fixture
def counted(monkeypatch):
    """How many images went through the backbone, block by block."""
    calls, predict = [], keras.Model.predict_on_batch

    def counting(self, images):
        calls.append(len(images))
        return predict(self, images)

    monkeypatch.setattr(keras.Model, "predict_on_batch", counting)
    return calls


def test_features_through_the_head_are_the_whole_models_logits(noise_data, tmp_path):
    model = model_of()
    (head, _, data), _, _ = extract(noise_data, tmp_path, model=model)
    for name in ("train", "val"):
        split = getattr(data, name)
        expected = model.predict(getattr(noise_data, name).images, verbose=0)
        np.testing.assert_allclose(head.predict(split.images[:], verbose=0), expected, atol=1e-5)
        np.testing.assert_array_equal(split.labels, getattr(noise_data, name).labels)
        assert split.images.dtype == np.float32 and split.images.shape == (len(split), 6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_16_bit_policies_lose_nothing_on_disk(noise_data, tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = model_of()
        (head, _, data), _, _ = extract(noise_data, tmp_path, model=model)
        expected = model.predict(noise_data.val.images, verbose=0)
        np.testing.assert_allclose(head.predict(data.val.images[:], verbose=0), expected, atol=1e-3)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("row", [ROW, SHIFTED], ids=["plain", "augmented"])
def test_training_on_features_equals_training_on_the_fly(noise_data, tmp_path, row):
    """With a view an epoch, which is the default, augmentation included."""
    whole, direct = model_of(row), Resume(tmp_path / "direct")
    history = direct.load("{}")
    fit(whole, row, noise_data, TRAINING, seed=3, resume=direct, progress=history)
    model = model_of(row)
    parts, progress, resume = extract(noise_data, tmp_path / "cached", row=row, model=model, seed=3)
    fit(*parts, TRAINING, seed=3, resume=resume, progress=progress)
    for name in set(train.HISTORY) - {"seconds"}:
        assert progress.history[name] == pytest.approx(history.history[name], abs=1e-4), name
    for layer in whole.layers:  # the head of the whole model is the one that was trained, the rest was not touched
        for a, b in zip(layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=layer.name)
    for a, b in zip(model_of(row).get_layer("bn").get_weights(), model.get_layer("bn").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_views_are_what_augmentation_gives_and_epochs_show_them_in_turn(noise_data, tmp_path):
    model = model_of(SHIFTED)
    training = dataclasses.replace(TRAINING, views=3)
    (_, row, data), _, _ = extract(noise_data, tmp_path, row=SHIFTED, training=training, model=model, seed=7)
    assert row.augmentation == () and len(data.train.views) == 3
    trunk, _ = features.cut(model)
    for view, rows in enumerate(data.train.views):
        seeds = np.array([[7, view, index] for index in range(48)], "int32")
        images = augmented(noise_data.train.images, seeds, SHIFTED.augmentation)
        np.testing.assert_allclose(rows[:], trunk.predict(images, verbose=0), atol=1e-5)
    batches = list(train_pipeline(data.train, batch_size=16, seed=7, epochs=5, first_epoch=1))
    for number, (rows, labels) in enumerate(batches):
        epoch, step = 1 + number // 3, number % 3
        chosen = epoch_order(48, seed=7, epoch=epoch)[step * 16 :][:16]
        np.testing.assert_array_equal(rows, data.train.views[epoch % 3][chosen])
        np.testing.assert_array_equal(labels, noise_data.train.labels[chosen])


@pytest.mark.parametrize(
    ("row", "views", "epochs", "expected"),
    [(ROW, None, 5, 1), (SHIFTED, None, 5, 5), (SHIFTED, 2, 5, 2), (SHIFTED, 8, 5, 5)],
)
def test_there_are_no_more_views_than_epochs_and_one_where_all_are_alike(row, views, epochs, expected):
    training = dataclasses.replace(TRAINING, stages=(Stage(epochs, 1e-2),), views=views)
    assert features.views_of(row, training) == expected


def test_val_and_earlier_views_are_shared_between_numbers_of_views(noise_data, tmp_path, counted):
    extract(noise_data, tmp_path / "a", row=SHIFTED, training=dataclasses.replace(TRAINING, views=1))
    assert counted == [10] * (5 + 2)
    _, progress, _ = extract(noise_data, tmp_path / "b", row=SHIFTED, training=dataclasses.replace(TRAINING, views=2))
    assert counted == [10] * (5 + 2 + 5)
    assert sorted(entry["cached"] for entry in progress.features.values()) == [False, True, True]


DATA = Dataset("noise", "noise", "0" * 64, tuple("abcdefghij"), noise(48), noise(20, seed=1), noise(20, seed=2))


def names(data=DATA, *, row=SHIFTED, model=None, training=TRAINING, seed=0, deterministic=False):
    """What the files of a run are called, without their directories."""
    trunk, _ = features.cut(model or model_of(row))
    files = features.planned(trunk, row, data, training, seed=seed, deterministic=deterministic)
    return {file.path.name for file in files}


def other_row(**columns):
    return names(row=dataclasses.replace(SHIFTED, **columns))


def other_statistics():
    model = model_of(SHIFTED)
    model.get_layer("bn").moving_mean.assign(np.full(6, 0.1, "float32"))
    return names(model=model)


def other_images(change):
    train, val = (dataclasses.replace(split, images=change(split.images)) for split in (DATA.train, DATA.val))
    return names(dataclasses.replace(DATA, train=train, val=val))


def other_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return names()
    finally:
        keras.config.set_dtype_policy("float32")


OTHERS = {
    "weights": lambda: names(model=model_of(SHIFTED, seed=1)),
    "statistics": other_statistics,
    "backbone": lambda: names(model=build(MODELS["scratch_cnn"], image_shape=(32, 32, 3), classes=10, steps=9, seed=0)),
    "pixels": lambda: other_row(pixels=48),
    "scaling": lambda: other_row(scaling="unit"),
    "pooling": lambda: other_row(head="small"),
    "precision": other_precision,
    "dataset": lambda: names(dataclasses.replace(DATA, fingerprint="1" * 64)),
    "images": lambda: other_images(lambda images: np.maximum(images, 1)),
    "order": lambda: other_images(lambda images: images[::-1]),
    "deterministic": lambda: names(deterministic=True),
}


@pytest.mark.parametrize("ingredient", OTHERS)
def test_whatever_changes_the_numbers_changes_the_files_names(ingredient):
    assert not names() & OTHERS[ingredient]()


@pytest.mark.parametrize("name", ["backend", "device", "keras", "tensorflow"])
def test_another_machine_or_library_makes_its_own_features(monkeypatch, name):
    before, here = names(), features.runtime.environment()
    monkeypatch.setattr(features.runtime, "environment", lambda: {**here, name: "another"})
    assert not before & names()


def test_what_concerns_augmentation_changes_the_names_of_train_alone(monkeypatch):
    plain = names()
    others = [names(seed=1), names(row=dataclasses.replace(SHIFTED, augmentation=("shift",)))]
    monkeypatch.setitem(augment.MOVES, "shift", functools.partial(augment.shift, pad=3))
    monkeypatch.setattr(augment, "_moved", compiled(augment._moved.python_function))  # traced anew
    for other in (*others, names()):
        (val,) = plain & other
        assert "-val-" in val


def test_what_does_not_change_the_numbers_leaves_the_names():
    """More epochs, another rate, other seeds without augmentation: the same files serve."""
    assert names(row=ROW, seed=1, training=dataclasses.replace(TRAINING, batch_size=8)) == names(row=ROW)
    assert names(model=model_of(SHIFTED, steps=1000)) == names()  # BatchNorm's momentum follows the steps


class Killed(Exception):
    """What a test raises in place of a kill."""


def killed_after(blocks, monkeypatch, start):
    """Has the next extraction end abruptly when so many blocks are finished."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        left = iter(range(blocks - 1))

        def update(self, images):
            if next(left, None) is None:
                raise Killed

        patch.setattr(features.Report, "update", update)
        start()


@pytest.mark.parametrize("blocks", [1, 4, 5, 6])
def test_a_killed_extraction_goes_on_behind_its_last_finished_block(noise_data, tmp_path, monkeypatch, counted, blocks):
    (_, _, whole), _, _ = extract(noise_data, tmp_path / "a")
    expected = whole.train.images[:], whole.val.images[:]
    shutil.rmtree(tmp_path / "cache")
    killed_after(blocks, monkeypatch, lambda: extract(noise_data, tmp_path / "b"))
    assert len(stored(tmp_path)) == (blocks > 5)  # only what is whole has its name
    counted.clear()
    (_, _, data), progress, _ = extract(noise_data, tmp_path / "b")
    assert len(counted) == 5 + 2 - blocks
    for split, rows in zip((data.train, data.val), expected, strict=True):
        np.testing.assert_array_equal(split.images[:], rows)
    assert not any(entry["cached"] for entry in progress.features.values())


def test_what_extraction_took_is_counted_once_over_kills_and_not_when_it_came_from_the_cache(
    noise_data, tmp_path, monkeypatch
):
    killed_after(6, monkeypatch, lambda: extract(noise_data, tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(features, "settle", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            extract(noise_data, tmp_path / "run")  # noted, but not yet in its place
    _, progress, _ = extract(noise_data, tmp_path / "run")
    journals = [path.read_text().split()[::2] for path in (tmp_path / "cache" / "features").glob("*.blocks")]
    seconds = sum(float(took) for lines in journals for took in lines)
    assert progress.feature_seconds(cached=False) == pytest.approx(seconds, abs=0.01)
    assert progress.feature_seconds(cached=True) == 0 < progress.cpu_seconds
    _, again, _ = extract(noise_data, tmp_path / "run")  # the same run, resumed: still its own
    assert again.features == progress.features
    _, other, _ = extract(noise_data, tmp_path / "other")
    assert other.feature_seconds(cached=False) == other.cpu_seconds == 0
    assert other.feature_seconds(cached=True) == pytest.approx(seconds, abs=0.01)


def test_progress_and_time_left_are_said(noise_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "REPORT_EVERY", 0)
    killed_after(3, monkeypatch, lambda: extract(noise_data, tmp_path / "run"))
    capsys.readouterr()
    extract(noise_data, tmp_path / "run")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("features: 1 view of 48 train images, 20 val; 38 of 68 to extract, once: 0.00 GB in ")
    assert re.fullmatch(r"features 40/68  \d+\.\d images/s  about \d+ s left", said[1])
    assert said[-1].startswith("features 68/68")


def spoil(path, what):
    content = bytearray(path.read_bytes())
    if what == "a bit":
        content[-12 * 6 * 4] ^= 1  # the twelfth row from behind: the last block has eight
    path.write_bytes(content[:-5] if what == "short" else content[:50] if what == "no header" else content)


@pytest.mark.parametrize(("what", "again"), [("a bit", 2), ("short", 1), ("no header", 5)])
def test_a_damaged_file_is_noticed_and_what_is_damaged_computed_again(
    noise_data, tmp_path, capsys, counted, what, again
):
    (_, _, data), _, _ = extract(noise_data, tmp_path / "a")
    expected = data.train.images[:]
    (path,) = stored(tmp_path)
    spoil(path, what)
    counted.clear()
    (_, _, data), progress, _ = extract(noise_data, tmp_path / "b")
    np.testing.assert_array_equal(data.train.images[:], expected)
    assert len(counted) == again
    assert f"{path} is damaged: computed again from block {6 - again} on" in capsys.readouterr().out
    assert [entry["cached"] for entry in progress.features.values()] == [False, True]


@pytest.mark.parametrize("journal", [b"", b"nonsense\n", b"      0.100 " + b"0" * 32 + b"\n"])
def test_a_file_without_its_journal_is_computed_again(noise_data, tmp_path, counted, journal):
    extract(noise_data, tmp_path / "a")
    (path,) = stored(tmp_path)
    path.with_suffix(".blocks").write_bytes(journal)
    counted.clear()
    extract(noise_data, tmp_path / "b")
    assert len(counted) == 5


def test_a_disk_without_room_is_one_sentence_before_anything_is_computed(noise_data, tmp_path, monkeypatch, counted):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"Received: 0\.0 GB free\. Free some space.*`--views N`.*`--on-the-fly`"):
        extract(noise_data, tmp_path)
    assert counted == []


def test_a_disk_that_fills_up_is_one_sentence_and_what_was_computed_stays(noise_data, tmp_path, monkeypatch, counted):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunFailedError, match="No space left on device. What is there"):
        patch.setattr(features, "settle", full)
        extract(noise_data, tmp_path)
    extract(noise_data, tmp_path)
    assert len(counted) == 5 + 2


@pytest.mark.parametrize(
    ("row", "stages", "expected"),
    [
        (ROW, (Stage(2, 1e-2),), True),
        (dataclasses.replace(ROW, augmentation=("flip", "mixup")), (Stage(2, 1e-2),), False),
        (dataclasses.replace(ROW, trainable="all"), (Stage(2, 1e-2),), False),
        (dataclasses.replace(ROW, trainable="all"), (Stage(2, 1e-2, freeze_backbone=True),), True),
        (dataclasses.replace(ROW, trainable="all"), (Stage(2, 1e-2, freeze_backbone=True), Stage(1, 1e-2)), False),
    ],
)
def test_features_serve_where_no_stage_trains_the_backbone(row, stages, expected):
    training = dataclasses.replace(TRAINING, stages=stages)
    assert features.applicable(model_of(), row, training) == expected
    assert not features.applicable(model_of(), row, dataclasses.replace(training, views=0))


def test_a_student_needs_the_images_that_its_teacher_sees():
    assert not features.applicable(model_of(), ROW, dataclasses.replace(TRAINING, distillation=(4.0, 0.9)))


def test_a_backbone_with_dropout_is_no_function_of_the_image(monkeypatch):
    def random(x, *, momentum):
        return keras.layers.Dropout(0.3, name="dropout")(tiny(x, momentum=momentum))

    monkeypatch.setitem(BACKBONES, "tiny", Backbone(random))
    assert not features.applicable(model_of(), ROW, TRAINING)


def test_reading_stored_features_holds_no_more_than_a_batch(tmp_path):
    """A map of the file that stayed open would count as 400 MB of the process."""
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (50_000, 2048)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 50_000 * 2048 * 4)
    code = """
import sys
from cifar_keras.training.features import Stored
from cifar_keras.utils.system import peak_memory_mb
rows, before = Stored(sys.argv[1]), peak_memory_mb()
assert sum(len(rows[list(range(i, i + 1000))]) for i in range(0, len(rows), 1000)) == 50_000
print(peak_memory_mb() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50


@pytest.mark.slow
def test_memory_stays_flat_when_there_are_more_images(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    *_, line = importlib.import_module("views").memory(str(tmp_path), counts=(64, 256))
    assert line["met"], line


def test_deleting_the_cache_under_a_run_costs_it_nothing(noise_data, tmp_path):
    (_, _, data), _, _ = extract(noise_data, tmp_path)
    before = data.train.in_epoch(0)[np.arange(48)]
    for path in (tmp_path / "cache" / "features").iterdir():
        path.unlink()
    np.testing.assert_array_equal(data.train.in_epoch(1)[np.arange(48)], before)


def test_what_another_process_extracts_meanwhile_is_waited_for_and_counts_as_done(noise_data, tmp_path, capsys):
    extract(noise_data, tmp_path / "a")
    files = {path.name: path.read_bytes() for path in (tmp_path / "cache" / "features").glob("[!.]*")}
    for path in (tmp_path / "cache" / "features").glob("[!.]*"):
        path.unlink()
    (train_file,) = (tmp_path / "cache" / "features" / name for name in files if "train" in name and ".npy" in name)
    begun = threading.Event()

    def other():
        with lock(train_file):
            begun.set()
            time.sleep(1.5)  # this one finds it held and says so
            for name, content in files.items():
                (train_file.parent / name).write_bytes(content)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    _, progress, _ = extract(noise_data, tmp_path / "b")
    thread.join()
    assert "This one waits for it." in capsys.readouterr().out
    assert all(entry["cached"] for entry in progress.features.values())


EXPERIMENT = Experiment(99, "frozen", {"best": dataclasses.replace(TRAINING, model="scratch_cnn", override={
    "backbone": "tiny", "trainable": "head", "head": "probe", "augmentation": ("shift", "flip"),
})})  # fmt: skip


def run(root, experiment=EXPERIMENT, **options):
    plain = dict(variant="best", budget="full", dataset="shapes", weights="none", limit=40, seed=0, root=str(root))
    return runner.run(experiment, Options(**plain | options))


def test_a_run_on_features_leaves_what_one_on_the_fly_leaves_and_says_where_they_came_from(tmp_path, capsys):
    first, direct = run(tmp_path / "a"), run(tmp_path / "b", on_the_fly=True)
    assert "features: 5 views of 40 train images, 40 val; 240 of 240 to extract" in capsys.readouterr().out
    second = run(tmp_path / "a", fresh=True)
    assert "features: 5 views of 40 train images, 40 val; from the cache, extracting" in capsys.readouterr().out
    for name in ("test_accuracy", "train_accuracy", "val_accuracy", "parameters", "parameters_trainable", "epochs"):
        assert first[name] == second[name] == direct[name], name
    assert first["cached_seconds"] == direct["cached_seconds"] == 0 < second["cached_seconds"]
    assert first["training_seconds"] > second["cached_seconds"]
    both = [sorted((tmp_path / root).glob(f"Models/*{ending}")) for root in "ab" for ending in (".h5", "_arch*.json")]
    (h5, custom), (architecture,), (direct_h5, _), (direct_architecture,) = both
    assert architecture.read_text() == direct_architecture.read_text()
    images = noise(8).images
    expected = artifacts.load(direct_h5).predict(images, verbose=0)
    (checkpoint,) = (tmp_path / "a" / "model_cp").glob("*.keras")
    for model in (artifacts.load(checkpoint), artifacts.load(h5), artifacts.rebuild(architecture, custom)):
        probabilities = model.predict(images, verbose=0)
        assert probabilities.dtype == np.float32 and model.inputs[0].dtype == "uint8"
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_a_run_on_some_views_resumed_after_an_epoch_equals_the_unbroken_one(tmp_path, monkeypatch, capsys):
    whole, save = run(tmp_path / "a", views=2), Resume.save
    assert "features: 2 views of 40 train images" in capsys.readouterr().out
    assert "_views=2_" in whole["run_id"] and whole["config"]["training"]["views"] == 2

    def save_and_die(self, model, progress):
        save(self, model, progress)
        if progress.epochs == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Resume, "save", save_and_die)
        run(tmp_path / "b", views=2)
    resumed = run(tmp_path / "b", views=2)
    histories = [json.loads(next((tmp_path / root).glob("Models/*_history.json")).read_text()) for root in "ab"]
    for name in set(train.HISTORY) - {"seconds"}:
        assert histories[0][name] == pytest.approx(histories[1][name], abs=1e-6), name
    assert whole["test_accuracy"] == resumed["test_accuracy"]


def test_a_dry_run_says_what_would_be_extracted_and_writes_nothing(tmp_path, capsys):
    run(tmp_path / "root", dry_run=True)
    assert "240 of 240 to extract" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("override", "options", "said"),
    [
        ({}, {"views": 2, "on_the_fly": True}, "Received: both"),
        ({"augmentation": ()}, {"views": 2}, "model with augmentation"),
        ({"augmentation": ("flip", "mixup")}, {"views": 2}, "left out where images are mixed"),
        ({"augmentation": ("mixup",)}, {"class_weights": "balanced"}, "left out where images are mixed"),
        ({"trainable": "all"}, {"views": 2}, "frozen in every stage"),
        ({"trainable": "all"}, {"on_the_fly": True}, "frozen in every stage"),
    ],
)
def test_options_that_would_change_nothing_are_refused(tmp_path, override, options, said):
    best = EXPERIMENT.variants["best"]
    changed = dataclasses.replace(best, override=best.override | override)
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, dataclasses.replace(EXPERIMENT, variants={"best": changed}), **options)
