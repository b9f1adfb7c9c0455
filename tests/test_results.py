"""Metrics by hand, records, the CSV."""

import csv
import json

import numpy as np
import pytest

from cifar_keras import evaluate, results
from cifar_keras.config import ConfigError

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [1.0, 0.0, 0.0]], "float32")
LABELS = np.array([0, 2, 0, 1], "int32")


def record(run_id, **values):
    return {"run_id": run_id, "utc": f"2026-01-0{run_id}T00:00:00+00:00", "status": "finished", **values}


def test_accuracy_loss_and_confusion_by_hand():
    assert evaluate.accuracy(LABELS, PROBABILITIES) == 0.5
    tiny = np.finfo("float32").tiny
    expected = -np.mean(np.log([0.7, 0.8, 0.3, tiny]))
    assert evaluate.cross_entropy(LABELS, PROBABILITIES) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(evaluate.confusion(LABELS, PROBABILITIES), [[1, 1, 0], [1, 0, 0], [0, 0, 1]])


def test_wilson_equals_the_formula():
    p, n, z = 0.9, 1000, 1.959964
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))
    assert evaluate.wilson(p, n) == pytest.approx(expected, abs=1e-6)
    assert evaluate.wilson(1.0, 10)[1] == 1.0


def test_the_csv_is_rebuilt_from_the_records_alone(tmp_path):
    for run_id in "21":
        results.write(tmp_path, record(run_id, test_accuracy=0.5, config={"x": 1}))
    path = tmp_path / "results" / "results.csv"
    before = path.read_text()
    path.unlink()
    results.rebuild(tmp_path)
    assert path.read_text() == before
    rows = list(csv.DictReader(before.splitlines()))
    assert [row["run_id"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == list(results.COLUMNS)
    assert rows[0]["test_accuracy"] == "0.5" and rows[0]["tta_accuracy"] == ""


def test_predictions_are_stored_as_float16_with_labels(tmp_path):
    results.write(tmp_path, record("1"), predictions=(LABELS, PROBABILITIES))
    with np.load(tmp_path / "results" / "predictions" / "1.npz") as stored:
        np.testing.assert_array_equal(stored["labels"], LABELS)
        assert stored["probabilities"].dtype == np.float16
        np.testing.assert_allclose(stored["probabilities"], PROBABILITIES, atol=1e-3)


def test_a_broken_record_is_named(tmp_path):
    results.write(tmp_path, record("1"))
    (tmp_path / "results" / "runs" / "2.json").write_text("{")
    with pytest.raises(ConfigError, match="2.json is not a run record"):
        results.rebuild(tmp_path)


def test_every_column_is_explained_beside_the_results(tmp_path):
    results.rebuild(tmp_path)
    text = (tmp_path / "results" / "README.md").read_text()
    assert all(f"| `{column}` |" in text for column in results.COLUMNS)


def test_a_record_is_json_that_others_read(tmp_path):
    results.write(tmp_path, record("1", test_loss=0.25))
    assert json.loads((tmp_path / "results" / "runs" / "1.json").read_text())["test_loss"] == 0.25
