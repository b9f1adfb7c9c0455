"""The benchmarks compare equals, judge as they say, and write their table whole."""

import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from cifar_keras.models.zoo import MODELS, build, set_trainable
from cifar_keras.training.optim import make_optimizer
from cifar_keras.utils.paths import PROJECT

FOLDER = PROJECT / "benchmarks"
NOT_BENCHMARKS = ("measure", "implementations", "torch_models")
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.stem not in NOT_BENCHMARKS)
STEPPING = """
import sys, time
sys.path.insert(0, {folder!r})
from implementations import Clock
clock = Clock(lead=1)
print("what a library prints")
while clock.what != "fail":
    time.sleep(0.01)
    clock.step()
raise SystemExit("no compiler")
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The benchmarks import each other by bare names, as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def measure():
    return importlib.import_module("measure")


@pytest.fixture
def torch_models():
    pytest.importorskip("torch")
    return importlib.import_module("torch_models")


@pytest.fixture(scope="module", params=["resnet50_finetune", "scratch_cnn"])
def model(request):
    return build(MODELS[request.param], image_shape=(32, 32, 3), classes=10, steps=100, seed=0)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_explains_itself_without_loading_a_framework(name):
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[1], run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), str(PROJECT), *sys.path])}
    command = [sys.executable, "-c", code, str(FOLDER / name), "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


def test_a_side_takes_turns_and_says_why_it_ended(measure, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "IMPLEMENTATIONS", tmp_path / "implementations.py")
    measure.IMPLEMENTATIONS.write_text(STEPPING.format(folder=str(FOLDER)))
    implementation = measure.Implementation((), images=10)
    turn = measure.Turn(implementation)
    speeds = measure.rounds_of({"a": turn, "b": turn}, rounds=2, seconds=0.1)
    assert all(0 < speed <= 1000 for found in speeds.values() for speed in found), speeds
    assert [len(found) for found in speeds.values()] == [2, 2]
    assert implementation.speed(steps=1, what="fail") is None and implementation.speed(steps=1) is None
    assert implementation.failure == "failed: no compiler"
    implementation.close()


def test_the_fastest_turn_goes_on_and_the_others_end(measure):
    class Fake:
        failure = None

        def __init__(self, speed):
            self.found, self.closed = speed, False

        def ready(self):
            return self

        def speed(self, **_):
            return self.found

        def close(self):
            self.closed = True

    slow, fast = Fake(1.0), Fake(2.0)
    turns = {"slow": measure.Turn(slow), "fast": measure.Turn(fast)}
    with measure.fastest_turn("title", turns, rounds=2, seconds=0) as (best, turn, rows):
        assert best == "fast" and turn.implementation is fast and slow.closed and not fast.closed
    assert fast.closed and [row["value"] for row in rows] == [1.0, 2.0]


def test_without_pytorch_its_side_says_so_and_nothing_fails(measure, monkeypatch):
    monkeypatch.setattr(measure, "installed", lambda module: False)
    assert measure.training_loops("scratch_cnn", batch_size=500, full=True) == {}
    with measure.fastest_turn("title", {}, rounds=1, seconds=0) as (best, turn, rows):
        assert best is None and turn is None
    assert [row["note"] for row in rows] == ["not measured: install benchmarks/requirements.txt"]
    throughput = importlib.import_module("throughput")
    ours = (throughput.OURS, throughput.ON_BATCH, throughput.LIMIT)
    speeds = {f"{name}, float32": [10.0, 11.0] for name in ours}
    lines = throughput.judgements(
        throughput.COMPARISONS[1], (throughput.FLOAT32,), speeds, dict.fromkeys(speeds), full=True
    )
    assert lines[0]["value"] == 10.5 and lines[0]["met"] is None
    fit, limit, share = lines[-3:]
    assert fit["ratio"] == 1.0 and fit["met"] is True
    assert limit["value"] == pytest.approx(10.5 * 6 * 9 * 256**2 * 16**2 / 1e9) and limit["unit"] == "GFLOP/s"
    assert share["ratio"] == pytest.approx(0.6812 / (6 * 9 * 256**2 * 16**2 / 1e9)) and share["met"] is False


def test_with_two_precisions_the_faster_one_is_judged():
    throughput = importlib.import_module("throughput")
    both = (throughput.FLOAT32, throughput.MIXED)
    speeds = {
        f"{name}, {precision}": [speed]
        for name in (throughput.OURS, throughput.ON_BATCH, throughput.LIMIT)
        for precision, speed in zip(both, (10.0, 20.0), strict=True)
    } | {throughput.PYTORCH: [16.0]}
    lines = throughput.judgements(throughput.COMPARISONS[1], both, speeds, dict.fromkeys(speeds), full=True)
    slow, fast = lines[:2]
    assert slow["ratio"] == 10 / 16 and slow["target"] is None
    assert fast["ratio"] == 20 / 16 and fast["met"] is True and fast["benchmark"].endswith("float32 or bfloat16")


def test_the_operations_of_training_are_counted(model):
    (comparison,) = [c for c in importlib.import_module("throughput").COMPARISONS if c.name == model.name]
    set_trainable(model, MODELS[model.name], freeze_backbone=False)
    total, gradient_needed = 0, False
    for layer in model.layers:
        if getattr(layer, "kernel", None) is not None:
            multiplications = math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
            total += 2 * multiplications * (1 + layer.trainable + (layer.trainable and gradient_needed))
            gradient_needed = gradient_needed or layer.trainable
    assert total / 1e9 == pytest.approx(comparison.gflop, rel=1e-3)


def test_a_ratio_is_taken_within_rounds(measure):
    assert measure.ratio_of([10.0, 20.0, 90.0], [10.0, 10.0, 100.0]) == 1.0
    assert measure.ratio_of([], [1.0]) is None
    assert measure.judged(1.0, 1.2, of="PyTorch") == {"ratio": 1.0, "target": "at least 1.2 x PyTorch", "met": False}


def test_results_are_written_whole_and_stay_until_measured_again(measure, monkeypatch, tmp_path):
    collect = importlib.import_module("collect")
    good = measure.row("1 training", "ours", 195.03, "images/s", ratio=0.83, target="at least 0.8 x PyTorch", met=True)
    given = {"a": [good], "b": [measure.row("2 prediction", "ours", note="failed with exit code 1", met=False)]}
    monkeypatch.setattr(collect, "STORE", tmp_path / "results.json")
    monkeypatch.setattr(collect, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(collect, "rows_of", lambda name, full: given[name])
    assert collect.collect(["a", "b"], full=False) == 1
    targets, a, b = collect.RESULTS.read_text().split("\n## ")[1:]
    assert "195" in targets and "0.830" in targets and "yes" in targets and "2 prediction" not in targets
    assert "195" in a and measure.hardware() in a and "tensorflow" in a and "the short form" in a
    assert "failed with exit code 1" in b
    given["b"] = [measure.row("2 prediction", "ours", 7.0, "images/s")]
    assert collect.collect(["b"], full=True) == 0
    _, kept, again = collect.RESULTS.read_text().split("\n## ")[1:]
    assert kept == a and "failed" not in again and "--full" in again


def test_a_benchmark_that_fails_becomes_a_row(monkeypatch, tmp_path):
    collect = importlib.import_module("collect")
    (row,) = collect.rows_of("no_such_benchmark", full=False)
    assert row["met"] is False and row["note"] == "failed with exit code 1"


def test_every_benchmark_is_found_and_keeps_the_contract(measure):
    collect = importlib.import_module("collect")
    assert {
        "agreement",
        "against_tutorial",
        "features",
        "first_step",
        "inference",
        "predict",
        "throughput",
        "views",
    } <= set(collect.names())
    assert {path.removesuffix(".py") for path in SCRIPTS} == {"collect", *collect.names()}
    for values in importlib.import_module("agreement").runs_agreeing(PROJECT / "nowhere", "shapes", count=1):
        assert set(values) == set(measure.COLUMNS) and json.dumps(values)


def test_seconds_to_an_accuracy_count_every_epoch_before_it():
    seconds_to = importlib.import_module("against_tutorial").seconds_to
    history = {"seconds": [10.0, 11.0, 12.0], "val_accuracy": [0.5, 0.88, 0.9]}
    assert seconds_to(history, 0.88) == 21.0 and seconds_to(history, 0.95) is None


def test_of_several_runs_the_soonest_on_this_machine_counts(monkeypatch):
    against = importlib.import_module("against_tutorial")
    history = {"seconds": [100.0, 100.0, 100.0], "val_accuracy": [0.5, 0.88, 0.9]}
    took = {"slow": [300.0] * 3, "fast": [100.0] * 3, "elsewhere": [1.0] * 3}
    devices = dict.fromkeys(took, "here") | {"elsewhere": "elsewhere"}
    found = [
        ({"run_id": name, "device": devices[name], "val_n": 5000}, history | {"seconds": seconds})
        for name, seconds in took.items()
    ]
    monkeypatch.setattr(against, "runs", lambda: iter(found))
    monkeypatch.setattr(against, "device", lambda: "here")
    row = against.ours(against.EPOCHS * against.IMAGES / 1000)  # theirs takes 1,000 s
    assert row["value"] == 200.0 and row["ratio"] == 0.2 and row["met"] and row["note"].startswith("fast")
    monkeypatch.setattr(against, "runs", lambda: iter(()))
    assert against.ours(1.0)["value"] is None


def test_both_implementations_train_by_the_same_recipe(torch_models):
    for comparison in importlib.import_module("throughput").COMPARISONS:
        ours = importlib.import_module("implementations").recipe(comparison.name)
        theirs = torch_models.RECIPES[comparison.name]
        assert comparison.batch_size == ours.batch_size == theirs.batch_size
        assert ours.label_smoothing == theirs.label_smoothing


NAMES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
NAMES |= {"moving_variance": "running_var", "bias": "bias"}  # what PyTorch calls Keras' variables
KINDS = {"Conv2d": layers.Conv2D, "BatchNorm2d": layers.BatchNormalization, "BatchNorm1d": layers.BatchNormalization}
KINDS["Linear"] = layers.Dense


def counterparts(model, network):
    """Our layers and PyTorch's in pairs: those of one kind, in the order of their names and of their making."""
    ours = [layer for layer in model.layers if layer.weights and not layer.name.startswith("scaling")]
    ours.sort(key=lambda layer: (layer.name != "whitening", layer.name))
    theirs = [module for module in network.modules() if type(module).__name__ in KINDS]
    for kind in set(KINDS.values()):
        same = [module for module in theirs if KINDS[type(module).__name__] is kind]
        yield from zip([layer for layer in ours if isinstance(layer, kind)], same, strict=True)


def as_torch(variable):
    """The value of one of our variables in PyTorch's order of axes."""
    value = variable.numpy()
    return value.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]).copy()


def test_both_implementations_are_the_same_network(model, torch_models):
    import torch

    network, random = torch_models.NETWORKS[model.name]().eval(), np.random.default_rng(0)
    scaling = sum(layer.count_params() for layer in model.layers if layer.name.startswith("scaling"))
    assert torch_models.weights_of(network) == model.count_params() - scaling
    for ours, theirs in counterparts(model, network):
        for variable in ours.weights:
            if "kernel" not in variable.name:
                variable.assign(random.uniform(0.5, 1.5, variable.shape))
            value = as_torch(variable)
            if ours.name == "conv1_conv" and value.ndim == 4:
                value = value[:, ::-1].copy()  # ours sees BGR, as the published weights do
            with torch.no_grad():
                getattr(theirs, NAMES[variable.name]).copy_(torch.from_numpy(value))
    images = random.integers(0, 256, (4, 32, 32, 3), dtype="uint8")
    received = network(torch.from_numpy(images).permute(0, 3, 1, 2)).detach().numpy()
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_both_implementations_take_the_same_step_of_muon(torch_models):
    import torch

    random = np.random.default_rng(0)
    shapes = {"kernel": (3, 3, 8, 16), "head": (16, 10), "bias": (16,)}
    values = {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    ours = [keras.Variable(value, name=name) for name, value in values.items()]
    network = torch.nn.ParameterDict({v.name: torch.nn.Parameter(torch.from_numpy(as_torch(v))) for v in ours})
    training = importlib.import_module("implementations").recipe("scratch_cnn")
    optimizer = make_optimizer(training, training.stages[0], steps=10**6)
    optimizer.build(ours)
    theirs = torch_models.Muon(network)
    for _ in range(2):
        gradients = [keras.Variable(random.normal(size=v.shape).astype("float32")) for v in ours]
        optimizer.apply([gradient.value for gradient in gradients])
        for variable, gradient in zip(ours, gradients, strict=True):
            network[variable.name].grad = torch.from_numpy(as_torch(gradient))
        theirs.step()
    for variable in ours:
        np.testing.assert_allclose(network[variable.name].detach().numpy(), as_torch(variable), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["resnet50_finetune", "scratch_cnn", "tutorial"])
def test_pytorch_trains_on_augmented_batches(torch_models, name):
    import torch

    recipe = dataclasses.replace(torch_models.RECIPES[name], batch_size=4)
    images, labels = importlib.import_module("implementations").noise(8)
    batches = torch_models.batches(recipe, images, labels, workers=0)
    (first, targets), (second, _) = next(batches), next(batches)
    assert first.dtype == torch.uint8 and first.shape == (4, 3, 32, 32) and not torch.equal(first, second)
    trainer = torch_models.Trainer(recipe, layout="channels_last")
    losses = [trainer.step(first, targets) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_crops_are_places_of_the_padded_image(torch_models):
    images, labels = importlib.import_module("implementations").noise(1)
    data = torch_models.Images(images, labels, pad=2)
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)), "reflect")
    places = [padded[y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
    (crop,), _ = data.__getitems__([0])
    crop = crop.permute(1, 2, 0).numpy()
    assert any(np.array_equal(crop, place) or np.array_equal(crop[:, ::-1], place) for place in places)
