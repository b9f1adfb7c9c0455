"""What the demo claims, measured. Minutes long: `make test-slow`."""

import json
import subprocess
import sys

import pytest
from sklearn.linear_model import LogisticRegression

from cifar_keras.config import Limits
from cifar_keras.data import load
from cifar_keras.utils.paths import PROJECT


@pytest.mark.slow
def test_the_demos_scratch_cnn_beats_a_linear_model_on_pixels_by_ten_points(tmp_path):
    script = str(PROJECT / "experiments" / "exp4_scratch.py")
    subprocess.run([sys.executable, script, "--budget", "demo", "--root", str(tmp_path)], check=True)
    (path,) = (tmp_path / "results" / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["test_n"] >= 1000
    data = load("shapes", limits=Limits(record["train_images"], 10, record["test_n"]))
    flat = [split.images.reshape(len(split), -1) / 255 for split in (data.train, data.test)]
    linear = LogisticRegression(C=1e-3, max_iter=200).fit(flat[0], data.train.labels)
    assert record["test_accuracy"] >= linear.score(flat[1], data.test.labels) + 0.10


@pytest.mark.slow
def test_a_good_cnn_passes_ninety_percent_on_the_embedded_set(tmp_path):
    script = str(PROJECT / "experiments" / "exp4_scratch.py")
    options = ("--dataset", "shapes", "--budget", "quick", "--root", str(tmp_path))
    subprocess.run([sys.executable, script, *options], check=True)
    (path,) = (tmp_path / "results" / "runs").glob("*.json")
    assert json.loads(path.read_text())["test_accuracy"] > 0.9
