"""Stages, BatchNorm, selection, resuming: on a tiny network with every kind of layer that matters."""

import dataclasses

import h5py
import keras
import numpy as np
import pytest
from helpers import noise, tiny_network

from cifar_keras.config import ConfigError, RunFailedError, Stage, Training
from cifar_keras.models.backbones import BACKBONES, Backbone
from cifar_keras.models.zoo import MODELS, build
from cifar_keras.training import train
from cifar_keras.training.train import Resume, fit

ROW = dataclasses.replace(MODELS["scratch_cnn"], backbone="tiny", head="plain")
TWO_STAGES = Training(
    "tiny", batch_size=16, stages=(Stage(2, 1e-2, freeze_backbone=True), Stage(2, 1e-2)), label_smoothing=0.1
)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", Backbone(tiny_network))


class Killed(Exception):
    """What a test raises in place of a kill."""


def trained(data, folder, *, training=TWO_STAGES, identity="{}", stop_after=None, monkeypatch=None):
    """Trains the tiny network, to the end or until `stop_after` epochs are saved. Returns model and progress."""
    model = build(ROW, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    resume = Resume(folder)
    progress = resume.load(identity)
    if stop_after is not None:
        save = Resume.save

        def save_and_die(self, model, progress):
            save(self, model, progress)
            if progress.epochs == stop_after:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Resume, "save", save_and_die)
            fit(model, ROW, data, training, seed=0, resume=resume, progress=progress)
        return None
    fit(model, ROW, data, training, seed=0, resume=resume, progress=progress)
    return model, progress


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_equals_the_unbroken_one(noise_data, tmp_path, monkeypatch, stop_after):
    whole, progress = trained(noise_data, tmp_path / "whole")
    trained(noise_data, tmp_path / "broken", stop_after=stop_after, monkeypatch=monkeypatch)
    resumed, resumed_progress = trained(noise_data, tmp_path / "broken")
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name in set(train.HISTORY) - {"seconds"}:
        assert progress.history[name] == pytest.approx(resumed_progress.history[name], abs=1e-6), name
    assert resumed_progress.epochs == 4 and resumed_progress.best_epoch == progress.best_epoch


def values(model):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.trainable_variables]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_val_judges_and_keeps_the_moving_average_of_the_weights(noise_data, tmp_path, monkeypatch, optimizer):
    steps, judged = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(values(self.model))

        def on_test_batch_begin(self, batch, logs=None):
            judged.append(values(self.model))

    recipe = Training("tiny", batch_size=16, stages=(Stage(2, 1e-2),), ema=0.7, optimizer=optimizer)
    model = build(ROW, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    resume = Resume(tmp_path / "watched")
    progress = resume.load("{}")
    fit(model, ROW, noise_data, recipe, seed=0, resume=resume, progress=progress, callbacks=[Watch()])
    mean = steps[0]
    means = [mean := [0.7 * m + 0.3 * v for m, v in zip(mean, step, strict=True)] for step in steps[1:]]
    for found, expected in zip(judged[-1], means[-1], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    kept = means[len(steps) // 2 - 2] if progress.best_epoch == 1 else means[-1]
    for found, expected in zip(values(model), kept, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    whole, _ = trained(noise_data, tmp_path / "whole", training=recipe)
    trained(noise_data, tmp_path / "broken", training=recipe, stop_after=1, monkeypatch=monkeypatch)
    resumed, _ = trained(noise_data, tmp_path / "broken", training=recipe)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_later_stage_starts_from_the_weights_not_from_their_averages(noise_data, tmp_path, monkeypatch, stop_after):
    recipe = dataclasses.replace(TWO_STAGES, stages=(Stage(2, 1e-2), Stage(1, 1e-2)), ema=0.9)
    whole, progress = trained(noise_data, tmp_path / "whole", training=recipe)
    trained(noise_data, tmp_path / "broken", training=recipe, stop_after=stop_after, monkeypatch=monkeypatch)
    resumed, resumed_progress = trained(noise_data, tmp_path / "broken", training=recipe)
    assert progress.history["val_loss"] == pytest.approx(resumed_progress.history["val_loss"], abs=1e-5)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def kernels(model):
    return [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]


def test_the_smallest_weights_of_all_kernels_together_stay_zero(noise_data, tmp_path, monkeypatch):
    pruned = Training("tiny", batch_size=16, stages=(Stage(3, 1e-2),), sparsity=0.6)
    start = build(ROW, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    sizes = np.concatenate([np.abs(kernel).ravel() for kernel in kernels(start)])
    smallest = sizes <= np.sort(sizes)[round(0.6 * sizes.size) - 1]
    whole, _ = trained(noise_data, tmp_path / "whole", training=pruned)
    after = np.concatenate([kernel.ravel() for kernel in kernels(whole)])
    np.testing.assert_array_equal(after == 0, smallest)
    trained(noise_data, tmp_path / "broken", training=pruned, stop_after=1, monkeypatch=monkeypatch)
    resumed, _ = trained(noise_data, tmp_path / "broken", training=pruned)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_run_on_mixed_images_resumes_like_any_other(noise_data, tmp_path, monkeypatch, mix):
    monkeypatch.setitem(globals(), "ROW", dataclasses.replace(ROW, augmentation=("shift", mix)))
    whole, progress = trained(noise_data, tmp_path / "whole")
    trained(noise_data, tmp_path / "broken", stop_after=3, monkeypatch=monkeypatch)
    resumed, resumed_progress = trained(noise_data, tmp_path / "broken")
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert progress.history["accuracy"] == pytest.approx(resumed_progress.history["accuracy"], abs=1e-6)


@pytest.mark.parametrize("stop_after", [None, 1, 2])
def test_training_ends_early_where_val_sees_no_new_best_and_resumes_to_the_same_end(
    noise_data, tmp_path, monkeypatch, capsys, stop_after
):
    scores = iter([0.2, 0.1, 0.1, 0.1])
    monkeypatch.setattr(keras.Model, "evaluate", lambda *_, **__: {"loss": 1.0, "accuracy": next(scores)})
    patient = dataclasses.replace(TWO_STAGES, patience=2)
    if stop_after:
        trained(noise_data, tmp_path, training=patient, stop_after=stop_after, monkeypatch=monkeypatch)
    _, progress = trained(noise_data, tmp_path, training=patient)
    assert (progress.epochs, progress.best_epoch) == (3, 1)  # the first epoch of the second stage is the second bad one
    assert "ended after epoch 3: no new best on val for 2 epochs" in capsys.readouterr().out
    _, again = trained(noise_data, tmp_path, training=patient)  # killed after the end, before its record
    assert again.epochs == 3


def test_history_has_an_entry_an_epoch_and_says_which_stage(noise_data, tmp_path):
    _, progress = trained(noise_data, tmp_path)
    assert progress.history["epoch"] == [1, 2, 3, 4]
    assert progress.history["stage"] == [1, 1, 2, 2]
    assert all(len(values) == 4 for values in progress.history.values())
    assert sum(progress.history["seconds"]) == pytest.approx(progress.seconds, abs=0.01)
    assert progress.cpu_seconds > 0


def test_the_returned_weights_are_those_that_val_selected(noise_data, tmp_path):
    model, progress = trained(noise_data, tmp_path)
    accuracy = np.mean(model.predict(noise_data.val.images, verbose=0).argmax(axis=1) == noise_data.val.labels)
    assert accuracy == pytest.approx(max(progress.history["val_accuracy"]))
    assert progress.history["val_accuracy"][progress.best_epoch - 1] == max(progress.history["val_accuracy"])


def test_a_frozen_backbone_keeps_its_statistics_and_runs_in_inference_mode(noise_data, tmp_path):
    frozen = dataclasses.replace(TWO_STAGES, stages=TWO_STAGES.stages[:1])
    start = build(ROW, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    model, progress = trained(noise_data, tmp_path, training=frozen)
    for name in ("conv", "bn"):
        for before, after in zip(start.get_layer(name).get_weights(), model.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    # Inference mode: what an image gives does not depend on the images beside it, even with training=True.
    features = keras.Model(model.input, model.get_layer("bn").output)
    images = noise(4, seed=9).images
    alone = keras.ops.convert_to_numpy(features(images[:1], training=True))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(features(images, training=True))[:1], alone, atol=1e-5)


def test_a_trained_backbone_moves_its_statistics(noise_data, tmp_path):
    start = build(ROW, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    model, _ = trained(noise_data, tmp_path)
    for before, after in zip(start.get_layer("bn").get_weights(), model.get_layer("bn").get_weights(), strict=True):
        assert not np.array_equal(before, after)


DIVERGED = (
    r"loss became (nan|inf) in step \d of 3, epoch 2, stage 2 \(learning rate 1e\+38\)\. Likely causes: too high a "
    r"learning rate .*The best weights so far stay in .*best-0001\.weights\.h5"
)


def test_a_loss_that_is_not_finite_on_val_alone_stops_the_run_too(noise_data, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.Model, "evaluate", lambda *_, **__: {"loss": float("inf"), "accuracy": 0.1})
    with pytest.raises(RunFailedError, match=r"loss on val became inf .*epoch 1.*No epoch had been finished"):
        trained(noise_data, tmp_path)


def test_a_diverging_loss_stops_the_run_and_keeps_the_last_good_weights(noise_data, tmp_path):
    good, wild = Stage(1, 1e-3, schedule="constant"), Stage(3, 1e38, schedule="constant")
    training = dataclasses.replace(TWO_STAGES, optimizer="sgd", stages=(good, wild))
    with pytest.raises(RunFailedError, match=DIVERGED):
        trained(noise_data, tmp_path, training=training)
    progress = Resume(tmp_path).load("{}")
    assert progress.epochs >= 1 and np.isfinite(progress.history["loss"]).all()
    model = build(ROW, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    Resume(tmp_path).load_best(model, progress)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_the_best_weights_of_an_earlier_stage_load_beside_a_later_optimiser(noise_data, tmp_path, monkeypatch):
    trained(noise_data, tmp_path / "first", stop_after=1, monkeypatch=monkeypatch)
    resume = Resume(tmp_path / "first")
    model, _ = trained(noise_data, tmp_path / "both")
    resume.load_best(model, resume.load("{}"))  # a warning would be an error
    with h5py.File(resume.best(1)) as file:
        assert "optimizer" not in file


def test_optimiser_slots_exist_before_the_first_step(noise_data, tmp_path, monkeypatch):
    """Made inside the step's trace they would have it traced twice."""
    built = []
    start = train.Recorder.on_train_begin

    def spy(self, logs=None):
        built.append(self.model.optimizer.built)
        start(self, logs)

    monkeypatch.setattr(train.Recorder, "on_train_begin", spy)
    trained(noise_data, tmp_path)
    assert built == [True, True]


def test_an_interrupted_run_with_another_configuration_is_refused(noise_data, tmp_path, monkeypatch):
    trained(noise_data, tmp_path, identity='{"seed": 0}', stop_after=1, monkeypatch=monkeypatch)
    with pytest.raises(ConfigError, match="seed: 0 then, 1 now.*--fresh"):
        trained(noise_data, tmp_path, identity='{"seed": 1}')


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_every_precision_trains_resumes_and_returns_float32(noise_data, tmp_path, policy, monkeypatch):
    keras.config.set_dtype_policy(policy)
    try:
        trained(noise_data, tmp_path, stop_after=1, monkeypatch=monkeypatch)  # two steps
        with h5py.File(Resume(tmp_path).last(1)) as file:
            names = []
            file.visit(names.append)
        assert any("inner_optimizer" in name for name in names) == (policy == "mixed_float16")
        model, progress = trained(noise_data, tmp_path)  # loads weights, slots and loss scale, then goes on
        assert np.isfinite(progress.history["loss"]).all() and progress.epochs == 4
        assert model.get_layer("conv").compute_dtype == policy.removeprefix("mixed_")
        assert model.predict(noise(2).images, verbose=0).dtype == np.float32
        if policy == "mixed_float16":
            assert float(model.optimizer.dynamic_scale) >= 1.0
    finally:
        keras.config.set_dtype_policy("float32")


def test_loss_scale_and_step_count_come_back(noise_data, tmp_path, monkeypatch):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, _ = trained(noise_data, tmp_path, training=dataclasses.replace(TWO_STAGES, stages=(Stage(1, 1e-3),)))
        model.optimizer.dynamic_scale.assign(64.0)
        model.save_weights(tmp_path / "a.weights.h5")
        model.optimizer.dynamic_scale.assign(2.0)
        model.optimizer.iterations.assign(0)
        model.load_weights(tmp_path / "a.weights.h5")
        assert float(model.optimizer.dynamic_scale) == 64.0
        assert int(model.optimizer.iterations) == 3  # 48 images, batch 16
    finally:
        keras.config.set_dtype_policy("float32")
