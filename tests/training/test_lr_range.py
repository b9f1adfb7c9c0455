"""The learning-rate range test: smoothing and suggestion on made curves, the rates on a tiny network."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import tiny_network

from cifar_keras.config import Stage, Training
from cifar_keras.models.backbones import BACKBONES, Backbone
from cifar_keras.models.zoo import MODELS, build
from cifar_keras.training import lr_range
from cifar_keras.training.lr_range import centred, diverged, range_test, rising, smoothed, suggested

ROW = dataclasses.replace(MODELS["scratch_cnn"], backbone="tiny", head="plain")
TWO_STAGES = Training("tiny", batch_size=16, stages=(Stage(2, 1e-2, freeze_backbone=True), Stage(2, 1e-2, warmup=0.5)))
RATES = rising(1e-6, 1.0, 100)
LOGS = np.log10(RATES)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", Backbone(tiny_network))


def valley(scatter=0.0, seed=0):
    """Losses that fall fastest at 1e-3, are lowest near 0.04 and soar behind it."""
    fall = 0.9 / (1 + np.exp(-4 * (LOGS + 3)))
    soar = np.where(LOGS > -1.5, 20 * (LOGS + 1.5) ** 2, 0)
    return 2.3 - fall + soar + scatter * np.random.RandomState(seed).randn(len(RATES))


def decades(rate, other):
    return abs(np.log10(rate / other))


def test_rates_rise_by_equal_factors_and_include_both_ends():
    assert rising(1e-4, 1.0, 5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_the_moving_average_equals_the_formula_with_its_bias_corrected():
    losses, mean = np.random.RandomState(0).randn(30), 0.0
    for step, (loss, found) in enumerate(zip(losses, smoothed(losses, 0.95), strict=True), start=1):
        mean = 0.95 * mean + 0.05 * loss
        assert found == pytest.approx(mean / (1 - 0.95**step))
    np.testing.assert_allclose(smoothed(np.full(9, 2.3), 0.98), 2.3)  # without the correction it would start at 0.05


def test_smoothing_back_again_undoes_the_lag():
    ramp = -np.arange(60.0)
    assert smoothed(ramp, 0.8)[30] - ramp[30] == pytest.approx(4.0, abs=0.1)
    assert centred(ramp, 0.8)[30] == pytest.approx(ramp[30], abs=0.1)


def test_however_far_the_end_diverges_the_curve_before_it_is_the_same():
    far = valley().copy()
    far[-3:] = 1e9
    np.testing.assert_allclose(centred(far)[:80], centred(valley())[:80])


@pytest.mark.parametrize(("scatter", "tolerance"), [(0.0, 0.1), (0.03, 0.3), (0.1, 0.6)])
def test_the_suggestion_is_where_the_loss_falls_fastest_and_a_tenth_of_the_minimum(scatter, tolerance):
    found = suggested(RATES, valley(scatter))
    assert decades(found.steepest, 1e-3) < tolerance
    assert decades(found.below_minimum, 0.1 * RATES[valley().argmin()]) < max(0.2, tolerance)
    assert not found.still_falling


def test_the_first_steps_suggest_nothing():
    losses = valley()
    losses[0] += 0.3  # the steepest step of all, by far
    assert np.diff(losses).argmin() == 0
    assert decades(suggested(RATES, losses).steepest, 1e-3) < 0.15


def test_a_loss_that_only_varies_or_rises_suggests_nothing():
    scatter = 0.1 * np.random.RandomState(0).randn(200, len(RATES))
    assert sum(suggested(RATES, 2.3 + losses) is not None for losses in scatter) <= 4
    rise = np.maximum(0, LOGS + 3)
    assert sum(suggested(RATES, 1 + rise + losses) is not None for losses in scatter) <= 4


def test_too_few_steps_suggest_nothing_and_a_fall_to_the_end_is_said():
    assert suggested(RATES[:19], np.linspace(2.3, 1.0, 19)) is None
    assert suggested(RATES, np.linspace(2.3, 1.0, 100)).still_falling


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([2.0, 1.0, 1.0], False), ([2.0, float("nan")], True), ([2.0, float("inf")], True), ([1.0] * 9 + [30.0], True)],
)
def test_a_loss_diverges_at_four_times_its_minimum_or_where_it_is_not_finite(losses, expected):
    assert diverged(losses) == expected


def swept(data, training=TWO_STAGES, *, rates, stage=2):
    model = build(ROW, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    return (model, *range_test(model, ROW, data, training, stage=stage, rates=rates, seed=0))


class Watch(keras.callbacks.Callback):
    """Notes what a `fit` does; stands in for `Reseed`, the first callback, so its steps begin before the test's."""

    seen = []

    def __init__(self, seed):
        super().__init__()
        type(self).seen = []

    def on_train_batch_end(self, batch, logs=None):
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.seen.append((rate, int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)), logs["loss"]))


def test_each_step_has_its_planned_rate_over_several_epochs(noise_data, monkeypatch):
    monkeypatch.setattr(lr_range, "Reseed", Watch)
    rates = rising(1e-5, 1e-2, 8)  # of three steps an epoch
    _, done, losses = swept(noise_data, rates=rates)
    assert [rate for rate, _, _ in Watch.seen] == pytest.approx(rates, rel=1e-5)
    assert [step for _, step, _ in Watch.seen] == list(range(1, 9))
    np.testing.assert_array_equal(done, rates)
    assert len(losses) == 8


def test_the_loss_is_the_batch_s_own_and_not_the_epoch_s_mean(noise_data):
    """At a rate of almost zero the weights stay, so each loss can be computed again, from that batch alone."""
    plain = dataclasses.replace(TWO_STAGES, optimizer="sgd")
    row = dataclasses.replace(ROW, augmentation=())
    model = build(row, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    frozen = dataclasses.replace(plain, stages=(Stage(1, 1e-9, freeze_backbone=True),))
    for layer in model.layers:  # dropout would draw anew
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    _, losses = range_test(model, row, noise_data, frozen, stage=1, rates=rising(1e-12, 1e-11, 3), seed=0)
    images = lr_range.training_images(row, noise_data, frozen, seed=0, first_epoch=0, epochs=1)
    expected = [float(model.loss(labels, model(batch.numpy(), training=False))) for batch, labels in images]
    assert losses == pytest.approx(expected, rel=1e-4)
    assert np.ptp(losses) > 1e-3  # else a mean would look the same


def test_the_test_ends_where_the_loss_diverges(noise_data):
    wild = dataclasses.replace(TWO_STAGES, optimizer="sgd")
    _, rates, losses = swept(noise_data, wild, rates=rising(1e-3, 1e30, 40))
    assert 1 <= len(losses) < 40 and len(rates) == len(losses) and np.isfinite(losses).all()


@pytest.mark.parametrize(("stage", "moves"), [(1, False), (2, True)])
def test_a_stage_trains_what_it_trains_in_a_run(noise_data, stage, moves):
    start = build(ROW, image_shape=(32, 32, 3), classes=10, steps=12, seed=0)
    model, *_ = swept(noise_data, rates=rising(1e-3, 1e-2, 3), stage=stage)
    same = np.array_equal(*(one.get_layer("conv").get_weights()[0] for one in (start, model)))
    assert same != moves
    assert not np.array_equal(*(one.get_layer("logits").get_weights()[0] for one in (start, model)))


def test_muon_s_other_rates_keep_the_recipe_s_ratio(noise_data):
    muon = dataclasses.replace(TWO_STAGES, optimizer="muon")
    model, *_ = swept(noise_data, muon, rates=rising(1e-4, 1e-3, 3))
    assert model.optimizer.head_rate == pytest.approx(0.67 * 16 / 256**2 / 1e-2)
    assert model.optimizer.bias_rate == pytest.approx(0.053 * 16 / 1e-2)
    assert model.optimizer.peak == 1e-2


def test_pruned_weights_stay_zero(noise_data):
    pruned = Training("tiny", batch_size=16, stages=(Stage(3, 1e-2),), sparsity=0.6)
    model, *_ = swept(noise_data, pruned, rates=rising(1e-4, 1e-3, 3), stage=1)
    weights = np.concatenate([layer.kernel.numpy().ravel() for layer in model.layers if hasattr(layer, "kernel")])
    assert np.mean(weights == 0) == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_the_rate_is_set_in_16_bit_too(noise_data, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model, _, losses = swept(noise_data, rates=rising(1e-4, 1e-3, 4))
    finally:
        keras.config.set_dtype_policy("float32")
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3) and len(losses) == 4


def test_the_images_are_those_with_which_the_stage_begins_in_a_run(noise_data, monkeypatch):
    seen = []
    real = lr_range.training_images
    monkeypatch.setattr(
        lr_range, "training_images", lambda *parts, **asked: (seen.append(asked), real(*parts, **asked))[1]
    )
    swept(noise_data, rates=rising(1e-4, 1e-3, 4))
    assert seen == [{"seed": 0, "first_epoch": 2, "epochs": 4}]
