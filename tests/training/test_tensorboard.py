"""Event files hold every epoch of a run exactly once, whatever stopped it in between."""

import copy
import importlib.util
import json

import keras
import numpy as np
import pytest
from helpers import config

from cifar_keras import plotting
from cifar_keras.config import ConfigError, RunFailedError
from cifar_keras.training import tensorboard
from cifar_keras.training.train import HISTORY, Progress


class Killed(Exception):
    """What a test raises in place of a kill."""


def epochs_of(count, *, start=0):
    """A progress whose every number tells its name and epoch."""
    progress = Progress("{}")
    for epoch in range(start + 1, start + count + 1):
        add(progress, epoch)
    return progress


def add(progress, epoch):
    for number, name in enumerate(HISTORY):
        progress.history[name].append(epoch if name == "epoch" else 100 * number + epoch)
    progress.epochs = epoch


def board(folder):
    pytest.importorskip("tensorboard")
    return tensorboard.tracker("tensorboard", folder=folder, config=config())


def events(folder):
    """What TensorBoard itself reads from a folder of event files."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def scalars(folder, tag):
    """The (step, value) pairs of a tag, in the order in which they were written."""
    import tensorflow as tf

    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events(folder).Tensors(tag)]


def written(folder):
    """Every curve of a run: {(writer, tag): pairs}."""
    return {
        (writer, tag): scalars(folder / writer, tag)
        for writer in ("train", "validation")
        for tag in events(folder / writer).Tags()["tensors"]
    }


def expected(count):
    """What `written` must be after that many epochs of `epochs_of`."""
    curves = {
        ("train", "epoch_loss"): "loss",
        ("train", "epoch_accuracy"): "accuracy",
        ("train", "epoch_learning_rate"): "learning_rate",
        ("train", "epoch_seconds"): "seconds",
        ("validation", "epoch_loss"): "val_loss",
        ("validation", "epoch_accuracy"): "val_accuracy",
    }
    return {
        place: [(epoch, 100.0 * HISTORY.index(name) + epoch) for epoch in range(1, count + 1)]
        for place, name in curves.items()
    }


def test_every_epoch_is_on_disk_as_soon_as_it_is_over(tmp_path):
    progress = epochs_of(0)
    (callback,) = board(tmp_path).start(progress)
    for epoch in (1, 2, 3):
        add(progress, epoch)
        callback.on_epoch_end(epoch - 1)
        assert written(tmp_path) == expected(epoch)


@pytest.mark.parametrize("saved", [0, 1, 2], ids="{} of 2 epochs were saved".format)
def test_a_killed_and_resumed_run_shows_every_epoch_once(tmp_path, saved):
    progress = epochs_of(0)
    (callback,) = board(tmp_path).start(progress)
    for epoch in (1, 2):
        add(progress, epoch)
        callback.on_epoch_end(epoch - 1)
    resumed = epochs_of(saved)  # and the first process just ends: nothing is finished, nothing closed
    (callback,) = board(tmp_path).start(resumed)
    assert written(tmp_path) == (expected(saved) if saved else {})
    for epoch in range(saved + 1, 5):
        add(resumed, epoch)
        callback.on_epoch_end(epoch - 1)
    assert written(tmp_path) == expected(4)


def test_a_run_killed_after_its_last_epoch_is_complete_too(tmp_path):
    board(tmp_path).start(epochs_of(3))
    tracker = board(tmp_path)
    tracker.start(epochs_of(3))
    tracker.finish({"best_epoch": 2, "test_accuracy": 0.5}, {})
    assert written(tmp_path) == expected(3)


def test_it_follows_real_training_through_stages_and_a_kill(tmp_path):
    """As `train.fit` calls it: one `fit` a stage, the callback behind the one that records."""
    progress = epochs_of(0)

    class Recorder(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for name in HISTORY:
                progress.history[name].append(logs.get(name, epoch + 1))

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise Killed

    def train(stages, *behind):
        callbacks = [Recorder(), *board(tmp_path).start(progress), *behind]
        for first, end in stages:
            model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse", metrics=["accuracy"])
            data = {"x": np.ones((4, 2)), "y": np.zeros((4, 1)), "validation_data": (np.ones((2, 2)), np.zeros((2, 1)))}
            model.fit(**data, initial_epoch=first, epochs=end, callbacks=callbacks, verbose=0)

    with pytest.raises(Killed):
        train([(0, 2), (2, 4)], Kill())
    train([(3, 4), (4, 6)])
    assert [step for step, _ in scalars(tmp_path / "train", "epoch_loss")] == [1, 2, 3, 4, 5, 6]
    for writer, name in (("train", "loss"), ("validation", "val_loss")):
        values = [value for _, value in scalars(tmp_path / writer, "epoch_loss")]
        assert values == pytest.approx(progress.history[name])


def test_the_configuration_is_there_from_the_start_as_text(tmp_path):
    import tensorflow as tf

    board(tmp_path).start(epochs_of(0))
    (event,) = events(tmp_path).Tensors("configuration")
    text = tf.make_ndarray(event.tensor_proto).item().decode()
    assert text.startswith("```json\n") and text.endswith("\n```")
    assert json.loads(text.removeprefix("```json").removesuffix("```")) == json.loads(config().identity)


def test_the_end_adds_test_accuracy_and_pictures_of_the_same_size(tmp_path):
    import tensorflow as tf

    paths = {"confusion": tmp_path / "confusion.png", "curves": tmp_path / "curves.png"}
    plotting.confusion_matrix(np.eye(3, dtype=int), ("a", "b", "c"), paths["confusion"], title="t")
    history = epochs_of(2).history
    plotting.training_curves(history, paths["curves"], title="t", best_epoch=1)
    tracker = board(tmp_path / "run")
    tracker.start(epochs_of(2))
    tracker.finish({"best_epoch": 2, "test_accuracy": 0.875}, paths)
    assert scalars(tmp_path / "run", "test_accuracy") == [(2, 0.875)]
    for name, path in paths.items():
        (event,) = events(tmp_path / "run").Tensors(name)
        width, height, png = tf.make_ndarray(event.tensor_proto)
        original = tf.io.decode_png(path.read_bytes(), channels=3)
        assert (int(height), int(width)) == tuple(original.shape[:2])
        np.testing.assert_array_equal(tf.io.decode_png(png), original)


def test_another_runs_folder_stays(tmp_path):
    board(tmp_path / "a").start(epochs_of(2))
    board(tmp_path / "b").start(epochs_of(1))
    assert written(tmp_path / "a") == expected(2)


def test_nothing_is_written_before_the_start(tmp_path):
    board(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_history_is_only_read(tmp_path):
    progress = epochs_of(2)
    before = copy.deepcopy(progress)
    board(tmp_path).start(progress)
    assert progress == before


def test_a_folder_that_can_not_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailedError, match=r"event files in .*file/run: .*Not a directory.*--track"):
        board(tmp_path / "file" / "run").start(epochs_of(0))


def test_an_error_of_tensorflow_is_a_sentence_too(tmp_path):
    import tensorflow as tf

    tracker = board(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailedError, match=r"event files in [^{\[]*: [^{\[]*[Nn]ot a directory\. Free"):
        with tracker._writing():
            tf.summary.create_file_writer(str(tmp_path / "file"))


def test_without_tracking_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tracker = tensorboard.tracker(None, folder=tmp_path / "run", config=config())
    assert tracker.start(epochs_of(1)) == []
    tracker.finish({"best_epoch": 1, "test_accuracy": 0.5}, {"confusion": tmp_path / "none.png"})
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_reported(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the tensorboard package. Received: not installed. `pip install"):
        tensorboard.require("tensorboard")
