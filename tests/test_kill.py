"""kill -9 anywhere: the same command goes on, and ends with what the unbroken run ends with, to the last bit."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from cifar_keras import results

CHILD = Path(__file__).with_name("killed_run.py")
PHASES = ("data", "model", "stage 1", "stage 2", "validation", "epoch's state", "artifacts", "results")
MEASURED = {"run_id", "utc", "training_seconds", "images_per_second", "peak_memory_mb"}


def start(root, *arguments, **options):
    """Starts the run as a process whose lines can be read as they come."""
    command = [sys.executable, str(CHILD), *"--dataset shapes --limit 96 --deterministic --root".split(), str(root)]
    command += arguments
    options.setdefault("env", {**os.environ, "CIFAR_KERAS_CACHE": str(Path(root) / "cache")})  # features of its own
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, **options)


def unbroken(root, *arguments):
    """Runs to the end. Returns how long each phase took that it went through, in seconds (the longest of several)."""
    began, took = {}, {}
    with start(root, *arguments) as child:
        for line in child.stdout:
            mark, phase = line[:1], line[2:].rstrip()
            if mark == ">":
                began[phase] = time.monotonic()
            elif mark == "<":
                took[phase] = max(took.get(phase, 0.0), time.monotonic() - began[phase])
        error = child.stderr.read()
    assert child.returncode == 0, error
    return took


def killed(root, phase, *arguments, draw, longest):
    """Runs into a phase (one that recurs may go by a few times), then kills it at a random moment.

    Returns: whether it was killed: the phase may lie behind, and then the run comes to its end.
    """
    recurs = phase in ("validation", "epoch's state")
    with start(root, *arguments) as child:
        for line in child.stdout:
            if line.rstrip() == f"> {phase}" and not (recurs and draw.random() < 0.5):
                time.sleep(draw.uniform(0, longest))
                child.kill()
                break
        child.stdout.close()
        error = child.stderr.read()
    assert child.returncode in (0, -9), error
    return child.returncode == -9


def outcome(root):
    """Everything of a finished run that stopping must not change."""
    (record,) = results.read(root)
    (custom,) = (root / "Models").glob("[!.]*_custom.h5")  # what a killed writer left is hidden
    weights = {}
    with h5py.File(custom) as file:
        file.visititems(lambda name, item: weights.update({name: item[()]} if hasattr(item, "shape") else {}))
    (history,) = (root / "Models").glob("[!.]*_history.json")
    history = json.loads(history.read_text())
    del history["seconds"]
    columns = {name: record.get(name) for name in results.COLUMNS if name not in MEASURED}
    assert [row["run_id"] for row in results.read_csv(root / "results" / "results.csv")] == [record["run_id"]]
    assert not list((root / "model_cp").glob("*.resume"))
    return weights, history, columns


def assert_equal(one, other):
    """Bit for bit."""
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        np.testing.assert_array_equal(value, other[0][name], err_msg=name)
    assert one[1:] == other[1:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The unbroken run: `(its outcome, seconds by phase)`."""
    root = tmp_path_factory.mktemp("whole")
    took = unbroken(root)
    assert set(took) == set(PHASES)
    return outcome(root), took


def kill_loop(whole, folder, phases, *arguments, seed):
    """Kills in each of these phases in turn, at a random moment of it, and compares every run that comes to its end.

    Returns: how many kills hit each phase, and how many finished runs were equal.
    """
    expected, took = whole
    draw, hits, finished = random.Random(seed), Counter(), 0
    for phase in phases:
        while not killed(folder / str(finished), phase, *arguments, draw=draw, longest=took[phase]):
            assert_equal(outcome(folder / str(finished)), expected)
            finished += 1  # the phase lay behind: a new run
        hits[phase] += 1
    unbroken(folder / str(finished), *arguments)
    assert_equal(outcome(folder / str(finished)), expected)
    return hits, finished + 1


def test_a_run_killed_in_its_second_stage_its_saving_and_its_results_ends_as_if_it_had_not_been(whole, tmp_path):
    hits, finished = kill_loop(whole, tmp_path, ("stage 2", "epoch's state", "artifacts", "results"), seed=0)
    assert hits.total() == 4 and finished >= 1


def test_a_run_on_features_killed_while_it_extracts_and_trains_ends_as_if_it_had_not_been(tmp_path):
    frozen = ("--variant", "frozen")
    took = unbroken(tmp_path / "whole", *frozen)
    whole = outcome(tmp_path / "whole"), took
    hits, finished = kill_loop(whole, tmp_path, ("features", "features", "stage 1", "results"), *frozen, seed=3)
    assert hits == {"features": 2, "stage 1": 1, "results": 1} and finished >= 1


def test_a_disk_that_is_full_costs_a_sentence_and_no_finished_epoch(whole, tmp_path):
    """No file may be larger than the first stage's state: writing the second's larger one then fails midway."""
    most = 35_000
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))}
    with start(tmp_path, **limited) as child:
        _, error = child.communicate()
    assert child.returncode == 3
    assert error.startswith("error: Could not write ") and error.count("\n") == 1
    assert "last-0003.weights.h5: File too large. What stood there before is unchanged. Free some space" in error
    state = json.loads(next(tmp_path.glob("model_cp/*.resume/state.json")).read_text())
    assert state["epochs"] == 2
    unbroken(tmp_path)
    assert_equal(outcome(tmp_path), whole[0])


def test_a_second_process_on_the_same_run_is_told_which_one_has_it_and_a_dead_ones_lock_is_taken_over(tmp_path):
    with start(tmp_path) as first:
        while first.stdout.readline().rstrip() != "> model":
            pass
        first.send_signal(signal.SIGSTOP)
        with start(tmp_path) as second:
            _, error = second.communicate()
        assert second.returncode == 4
        assert f"under way in another process. It is process {first.pid} on " in error and error.count("\n") == 1
        first.kill()
    unbroken(tmp_path)


@pytest.mark.slow
def test_fifty_kills_over_all_phases_change_nothing(whole, tmp_path):
    draw = random.Random(1)
    phases = [*PHASES * 6, *draw.sample(PHASES, 2)]
    draw.shuffle(phases)
    hits, finished = kill_loop(whole, tmp_path, phases, seed=2)
    assert hits.total() == 50 and set(hits) == set(PHASES)
    print(f"\n{hits.total()} kills ({dict(hits)}), {finished} runs finished, each equal to the unbroken one")


@pytest.mark.slow
def test_twenty_runs_at_once_in_one_root_leave_exactly_their_rows(tmp_path):
    children = [start(tmp_path, "--seed", str(seed)) for seed in range(20)]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * 20, errors
    table = tmp_path / "results" / "results.csv"
    assert sorted(row["seed"] for row in results.read_csv(table)) == list(range(20))
    before = table.read_text()
    table.unlink()
    collate = [sys.executable, "-m", "cifar_keras", "collate", "--root", str(tmp_path)]
    subprocess.run(collate, check=True, stdout=subprocess.DEVNULL)
    assert table.read_text() == before
