"""Models, loss, optimiser and callbacks know only Keras: another backend runs the same study."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from cifar_keras.utils.paths import PROJECT


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *(("exp4_scratch", "best"), ("exp7_resnet18", "audit"), ("exp5_preprocessing", "unit_32_training")),
        *(("exp8_cnn_variants", "ema"), ("exp10_augmentation", "cutmix"), ("exp11_small_models", "prune_90")),
    ],
)
def test_an_experiment_runs_on_another_backend(tmp_path, backend, name, variant):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    script = str(PROJECT / "experiments" / f"{name}.py")
    options = ("--variant", variant, "--budget", "demo", "--limit", "40", "--epochs", "2", "--root", str(tmp_path))
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, script, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results" / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["backend"] == backend and record["epochs"] == 2
