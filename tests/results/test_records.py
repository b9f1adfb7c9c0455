"""Metrics by hand, records, the CSV."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from cifar_keras import metrics, results
from cifar_keras.config import ConfigError
from cifar_keras.results.groups import read_csv

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [1.0, 0.0, 0.0]], "float32")
LABELS = np.array([0, 2, 0, 1], "int32")


def record(run_id, **values):
    return {"run_id": run_id, "utc": f"2026-01-0{run_id}T00:00:00+00:00", "status": "finished", **values}


def test_accuracy_loss_and_confusion_by_hand():
    assert metrics.accuracy(LABELS, PROBABILITIES) == 0.5
    tiny = np.finfo("float32").tiny
    expected = -np.mean(np.log([0.7, 0.8, 0.3, tiny]))
    assert metrics.cross_entropy(LABELS, PROBABILITIES) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(metrics.confusion(LABELS, PROBABILITIES), [[1, 1, 0], [1, 0, 0], [0, 0, 1]])


def test_wilson_equals_the_formula():
    p, n, z = 0.9, 1000, 1.959964
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))
    assert metrics.wilson(p, n) == pytest.approx(expected, abs=1e-6)
    assert metrics.wilson(1.0, 10)[1] == 1.0


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


def test_twenty_processes_that_write_at_once_leave_exactly_their_rows(tmp_path):
    code = (
        "import sys; from cifar_keras import results; run = sys.argv[2]\n"
        "sys.stdin.read()  # until all are ready\n"
        "results.write(sys.argv[1], {'run_id': run, 'utc': f'2026-01-01T00:00:{int(run):02}', 'status': 'finished'})"
    )
    names = [str(number) for number in range(20)]
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path, name], stdin=subprocess.PIPE) for name in names]
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait() for writer in writers] == [0] * 20
    rows = csv.DictReader((tmp_path / "results" / "results.csv").read_text().splitlines())
    assert [row["run_id"] for row in rows] == names


def test_the_csv_says_what_the_command_line_changed(tmp_path):
    results.write(
        tmp_path,
        record("1", config={"overrides": {"limit": 500, "epochs": 3, "weights": "none", "precision": "float32"}}),
    )
    results.write(tmp_path, record("2", config={"overrides": {}}))
    with open(tmp_path / "results" / "results.csv") as file:
        assert [row["overrides"] for row in csv.DictReader(file)] == ["epochs=3, limit=500", ""]


FINISHED = {
    "run_id": "1", "utc": "2026-01-01", "experiment": "exp4", "variant": "best", "budget": "full",
    "dataset": "CIFAR-10", "fingerprint": "123456789012", "seed": "0", "weights": "none", "test_accuracy": "0.5",
    "test_n": "10000", "status": "finished",
}  # fmt: skip


def csv_of(path, *rows):
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    return path


def test_a_csv_is_read_back_with_types(tmp_path):
    run = record("1", experiment="exp4", variant="best", budget="full", dataset="CIFAR-10", fingerprint="1e5", seed=0)
    run |= {"weights": "none", "test_accuracy": 0.5, "test_n": 10, "deterministic": True, "python": "3.11"}
    results.write(tmp_path, run | {"config": {"overrides": {}}, "published_test": None})
    (row,) = read_csv(tmp_path / "results" / "results.csv")
    assert row == dict.fromkeys(results.COLUMNS) | run | {"overrides": "", "config": {"overrides": {}}}
    assert type(row["seed"]) is int and type(row["test_accuracy"]) is float and row["deterministic"] is True


def test_a_csv_of_another_version_or_program_is_read_too(tmp_path):
    other = FINISHED | {"test_n": "10000.0", "deterministic": "FALSE", "learning_rate": "0.1"}
    path = csv_of(tmp_path / "results.csv", other)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")  # as a spreadsheet does
    (row,) = read_csv(path)
    assert (row["test_n"], row["deterministic"], row["learning_rate"]) == (10000, False, "0.1")
    assert row["fingerprint"] == "123456789012" and row["keras"] is row["overrides"] is row["config"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Expected a results.csv .*Received: .*a.csv: No such file"),
        (b"", "Expected a results.csv .*Received: .*a.csv, which is empty"),
        (b"\n\n", "a.csv, which is empty"),
        (b"\x89PNG\x00\xff", "Expected a results.csv .*a.csv: .*decode"),
        (b'run_id\n"open', "Expected a results.csv .*a.csv: unexpected end of data"),
        (b"run_id,utc\n1,2\n", "without experiment, variant, .*status. Its first line should be"),
    ],
)
def test_what_is_no_results_csv_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_csv(tmp_path / "a.csv")


def test_a_folder_is_no_results_csv(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        read_csv(tmp_path)


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("test_accuracy", "90.2", "line 2: `test_accuracy` must be a share, between 0 and 1. Received: '90.2'"),
        ("test_accuracy", "nan", "must be a share"),
        ("test_accuracy", "", "a finished run needs values for test_accuracy"),
        ("test_n", "0", "`test_n` must be a whole number above 0"),
        ("seed", "1.5", "`seed` must be a whole number. Received: '1.5'"),
        ("seed", "inf", "`seed` must be a whole number"),
        ("training_seconds", "inf", "`training_seconds` must be a number"),
        ("deterministic", "maybe", "`deterministic` must be True or False"),
        ("status", "finished,more", "line 2: expected 12 values, as in the first line. Received: 13"),
    ],
)
def test_a_value_that_can_not_be_is_named(tmp_path, column, text, message):
    with pytest.raises(ConfigError, match=message):
        read_csv(csv_of(tmp_path / "a.csv", FINISHED | {column: text}))


def test_no_overrides_and_unknown_overrides_differ(tmp_path):
    (plain,) = read_csv(csv_of(tmp_path / "a.csv", FINISHED | {"overrides": ""}))
    (unknown,) = read_csv(csv_of(tmp_path / "b.csv", FINISHED))
    assert (plain["overrides"], unknown["overrides"]) == ("", None)


def test_a_failed_run_may_lack_values(tmp_path):
    (row,) = read_csv(csv_of(tmp_path / "a.csv", FINISHED | {"status": "failed", "test_accuracy": ""}))
    assert row["test_accuracy"] is None


def test_a_broken_record_beside_a_csv_is_named(tmp_path):
    (tmp_path / "runs").mkdir()
    for broken in ("{", "[]"):
        (tmp_path / "runs" / "1.json").write_text(broken)
        with pytest.raises(ConfigError, match="1.json is not a run record"):
            read_csv(csv_of(tmp_path / "a.csv", FINISHED))


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
