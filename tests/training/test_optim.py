"""The loss and the optimiser against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar_keras.config import Stage, Training
from cifar_keras.training import optim
from cifar_keras.training.optim import Accuracy, CrossEntropy, Muon, make_optimizer, make_schedule, orthogonalized

RANDOM = np.random.RandomState(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_equals_the_formula(smoothing):
    logits, labels = RANDOM.randn(6, 10).astype("float32"), np.arange(6)
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.eye(10)[labels] * (1 - smoothing) + smoothing / 10
    expected = -(targets * log).sum(axis=1).mean()
    assert float(CrossEntropy(smoothing)(labels, logits)) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_a_mixed_image_is_the_mean_of_both_labels():
    logits, share = RANDOM.randn(6, 10).astype("float32"), RANDOM.rand(6).astype("float32")
    own, partner = np.arange(6), np.arange(6) + 3
    targets = share[:, None] * np.eye(10)[own] + (1 - share[:, None]) * np.eye(10)[partner]
    each = [keras.ops.convert_to_numpy(CrossEntropy(0.2).call(labels, logits)) for labels in (own, partner)]
    mixed = keras.ops.convert_to_numpy(CrossEntropy(0.2).call(targets.astype("float32"), logits))
    np.testing.assert_allclose(mixed, share * each[0] + (1 - share) * each[1], rtol=1e-5)


def test_accuracy_counts_the_class_with_the_largest_share():
    logits = np.eye(4, dtype="float32")[[0, 1, 2, 3, 3]]
    metric = Accuracy()
    metric.update_state(np.array([0, 1, 2, 0, 1]), logits)
    assert float(metric.result()) == pytest.approx(0.6)
    metric.reset_state()
    shares = np.array([[0.6, 0.4, 0, 0], [0.6, 0.4, 0, 0], [0, 0, 1, 0], [0, 0, 0.7, 0.3], [0.1, 0, 0, 0.9]], "float32")
    metric.update_state(shares, logits)
    assert float(metric.result()) == pytest.approx(0.6)
    again = Accuracy.from_config(metric.get_config())
    assert again.name == "accuracy"


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (16, 16)])
def test_orthogonalising_brings_singular_values_near_one_and_keeps_directions(shape):
    matrix = RANDOM.randn(*shape).astype("float32")
    result = keras.ops.convert_to_numpy(orthogonalized(keras.ops.convert_to_tensor(matrix), steps=5))
    values = np.linalg.svd(result, compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    off = u.T @ result @ v.T
    assert np.abs(off - np.diag(np.diag(off))).max() < 1e-3


def reference(kernel, gradients, *, rate, momentum):
    """airbench94_muon's update of one kernel in NumPy, the exact SVD's direction left to the iteration."""
    buffer = np.zeros_like(kernel)
    for gradient in gradients:
        buffer = momentum * buffer + gradient
        update = (gradient + momentum * buffer).reshape(-1, kernel.shape[-1])
        update = keras.ops.convert_to_numpy(orthogonalized(keras.ops.convert_to_tensor(update)))
        kernel = kernel * np.sqrt(kernel.shape[-1]) / np.linalg.norm(kernel) - rate * update.reshape(kernel.shape)
    return kernel


def test_muon_moves_kernels_by_the_orthogonalised_nesterov_momentum():
    kernel = RANDOM.randn(3, 3, 4, 8).astype("float32")
    gradients = [RANDOM.randn(3, 3, 4, 8).astype("float32") for _ in range(3)]
    variable, optimizer = keras.Variable(kernel), Muon(0.1, momentum=0.6)
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    expected = reference(kernel, gradients, rate=0.1, momentum=0.6)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable.value), expected, atol=1e-4)


def test_muon_is_nesterov_sgd_with_decay_on_everything_else():
    value, gradients = RANDOM.randn(5).astype("float32"), [RANDOM.randn(5).astype("float32") for _ in range(3)]
    variable, optimizer = keras.Variable(value), Muon(0.1, bias_rate=2.0, sgd_momentum=0.85, decay=0.01)
    buffer = 0.0
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        gradient = gradient + 0.01 / 0.2 * value
        buffer = 0.85 * buffer + gradient
        value = value - 0.2 * (gradient + 0.85 * buffer)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable.value), value, atol=1e-5)


def test_muon_round_trips_through_its_config():
    config = Muon(0.1, bias_rate=2.0, decay=0.01).get_config()
    assert Muon.from_config(config).get_config() == config


@pytest.mark.parametrize(
    ("stage", "first", "middle", "last"),
    [
        (Stage(1, 1.0, schedule="constant"), 1.0, 1.0, 1.0),
        (Stage(1, 1.0, schedule="linear"), 1.0, 0.5, 0.0),
        (Stage(1, 1.0, schedule="cosine"), 1.0, 0.5, 0.0),
        (Stage(1, 1.0, warmup=0.5), 0.0, 1.0, 0.0),
    ],
)
def test_schedules_start_and_end_where_they_say(stage, first, middle, last):
    schedule = make_schedule(stage, steps=100)
    values = [float(schedule(step)) if callable(schedule) else schedule for step in (0, 50, 100)]
    assert values == pytest.approx([first, middle, last], abs=1e-6)


def test_a_step_schedule_halves_the_rate_after_each_third():
    schedule = make_schedule(Stage(3, 1.0, schedule="step"), steps=99)
    values = [float(schedule(step)) for step in (0, 32, 33, 65, 66, 98)]
    assert values == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_every_optimiser_lowers_a_loss(name):
    keras.utils.set_random_seed(0)
    training = Training("m", stages=(Stage(1, 0.01, schedule="constant"),), optimizer=name, batch_size=16)
    x, y = RANDOM.randn(16, 8, 8, 3).astype("float32"), np.arange(16) % 4
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model.compile(make_optimizer(training, training.stages[0], steps=10), CrossEntropy(), jit_compile=False)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, batch_size=16, epochs=10, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before


def trained(optimizer):
    """The weights and slots of a small network after four steps in a graph, and of a variable after four without."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(3)])
    model.compile(optimizer, CrossEntropy())
    images, labels = np.random.RandomState(1).randn(9, 6).astype("float32"), np.arange(9) % 3
    for _ in range(4):
        model.train_on_batch(images, labels)
    eager, variable = type(optimizer).from_config(optimizer.get_config()), keras.Variable(np.ones(4, "float32"))
    for step in range(4):
        eager.apply([keras.ops.convert_to_tensor(np.float32([1, -2, 0, step]))], [variable])
    values = [*model.get_weights(), *(v.value for v in optimizer.variables), variable.value]
    return [keras.ops.convert_to_numpy(value) for value in values]


@pytest.mark.parametrize(
    "rate", [0.01, keras.optimizers.schedules.CosineDecay(0.0, 3, warmup_target=0.1, warmup_steps=2)]
)
@pytest.mark.parametrize(
    "name, options", [("Adam", {}), ("AdamW", {"weight_decay": 0.1}), ("AdamW", {"weight_decay": 0.1, "amsgrad": True})]
)
def test_one_kernel_updates_as_keras_does(name, options, rate):
    expected = trained(getattr(keras.optimizers, name)(rate, **options))
    found = trained(getattr(optim, name)(rate, **options))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=5e-6)


def test_the_update_is_one_operation_for_each_variable():
    variable = keras.Variable(np.ones(4, "float32"))
    optimizer = optim.AdamW(keras.optimizers.schedules.CosineDecay(0.1, 9), weight_decay=0.1)
    optimizer.build([variable])
    graph = (
        tf.function(lambda gradient: optimizer.apply([gradient], [variable])).get_concrete_function(tf.ones(4)).graph
    )
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("ResourceApplyAdam") == 1 and "Sqrt" not in kinds
