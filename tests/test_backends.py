"""Models, loss, optimiser and callbacks know only Keras: another backend runs the same study."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from cifar_keras.paths import PROJECT


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_an_experiment_runs_on_another_backend(tmp_path, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    script = str(PROJECT / "experiments" / "exp4_scratch.py")
    options = ("--budget", "demo", "--limit", "40", "--epochs", "2", "--root", str(tmp_path))
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, script, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results" / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["backend"] == backend and record["epochs"] == 2
