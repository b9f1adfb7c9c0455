"""kill -9 anywhere: the same command goes on, and ends with what the unbroken run ends with, to the last bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cifar_keras import results
from cifar_keras.results.groups import read_csv

resource = pytest.importorskip("resource")  # Windows has neither it nor these signals

CHILD = Path(__file__).with_name("killed_run.py")
PHASES = ("data", "model", "stage 1", "stage 2", "validation", "epoch's state", "artifacts", "results")
MEASURED = {"run_id", "utc", "training_seconds", "cpu_seconds", "images_per_second", "peak_memory_mb"}


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """A folder of images, which a run has to decode first."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.RandomState(0).randint(0, 256, (200, 32, 32, 3)).astype("uint8")
    for number, image in enumerate(pixels):
        path = folder / f"class{number % 10}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    os.environ["KILLED_RUN_IMAGES"] = str(folder)
    yield
    del os.environ["KILLED_RUN_IMAGES"]


def start(root, *arguments, **options):
    """Starts the run as a process whose lines can be read as they come; every root has a cache of its own."""
    images = os.environ["KILLED_RUN_IMAGES"]
    command = [sys.executable, str(CHILD), "--dataset", images, "--deterministic", "--root", str(root), *arguments]
    environment = os.environ | {"CIFAR_KERAS_CACHE": str(root / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "bufsize": 1}
    return subprocess.Popen(command, env=environment, **pipes, **options)


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

    Returns: the phase that it was in when it died; None if the phase lay behind and the run came to its end.
    """
    if phase == "data":
        shutil.rmtree(root / "cache", ignore_errors=True)  # so that there is something to decode
    recurs, inside = phase in ("validation", "epoch's state"), ["between phases"]
    with start(root, *arguments) as child:
        for line in child.stdout:
            mark, name = line[:1], line[2:].rstrip()
            if mark == ">":
                inside.append(name)
            elif mark == "<":
                inside.pop()
            if line.rstrip() == f"> {phase}" and not (recurs and draw.random() < 0.5):
                time.sleep(draw.uniform(0, longest))
                child.kill()  # and read on: what it had come to say shows where it was
        error = child.stderr.read()
    assert child.returncode in (0, -9), error
    return inside[-1] if child.returncode else None


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
    assert [row["run_id"] for row in read_csv(root / "results" / "results.csv")] == [record["run_id"]]
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
    """The unbroken run: `(its outcome, seconds by phase, its root)`."""
    root = tmp_path_factory.mktemp("whole")
    took = unbroken(root)
    assert set(took) == set(PHASES)
    return outcome(root), took, root


def kill_loop(whole, folder, phases, *arguments, seed):
    """Kills in each of these phases in turn, at a random moment of it, and compares every run that comes to its end.

    Returns: how many kills hit each phase, and how many finished runs were equal.
    """
    expected, took, _ = whole
    draw, hits, finished = random.Random(seed), Counter(), 0
    for phase in phases:
        root = folder / str(finished)
        while (hit := killed(root, phase, *arguments, draw=draw, longest=took[phase])) is None:
            assert_equal(outcome(root), expected)
            finished += 1  # the phase lay behind: a new run
            root = folder / str(finished)
        hits[hit] += 1
    unbroken(folder / str(finished), *arguments)
    assert_equal(outcome(folder / str(finished)), expected)
    return hits, finished + 1


def test_a_run_killed_in_its_second_stage_its_saving_and_its_results_ends_as_if_it_had_not_been(whole, tmp_path):
    hits, _ = kill_loop(whole, tmp_path, ("data", "stage 2", "artifacts", "results"), seed=0)
    assert hits.total() == 4


def test_a_run_on_features_killed_while_it_extracts_and_trains_ends_as_if_it_had_not_been(tmp_path):
    frozen, root = ("--variant", "frozen"), tmp_path / "whole"
    took = unbroken(root, *frozen)
    phases = ("features", "features", "stage 1")
    hits, finished = kill_loop((outcome(root), took, root), tmp_path, phases, *frozen, seed=3)
    assert hits.total() == 3 and hits["features"] >= 1 and finished >= 1


def test_a_disk_that_is_full_costs_a_sentence_and_no_finished_epoch(whole, tmp_path):
    """No file may be larger than the first stage's state: writing the second's larger one then fails midway."""
    most = 35_000
    shutil.copytree(whole[2] / "cache", tmp_path / "cache")  # decoded images are larger
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))}
    with start(tmp_path, **limited) as child:
        _, error = child.communicate()
    assert child.returncode == 3
    assert error.startswith("error: Could not write ") and error.count("\n") == 1
    assert "last-0003.weights.h5: File too large. Its former content is unchanged. Free some space" in error
    state = json.loads(next(tmp_path.glob("model_cp/*.resume/state.json")).read_text())
    assert state["epochs"] == 2
    unbroken(tmp_path)
    assert_equal(outcome(tmp_path), whole[0])


def test_a_second_process_on_the_same_run_is_told_which_one_has_it_and_a_dead_ones_lock_is_taken_over(tmp_path):
    with start(tmp_path) as first:
        while (line := first.stdout.readline()) and line.rstrip() != "> model":
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
    assert hits.total() == 50
    print(f"\n{hits.total()} kills ({dict(hits)}), {finished} runs finished, each equal to the unbroken one")


@pytest.mark.slow
def test_twenty_runs_at_once_in_one_root_leave_exactly_their_rows(tmp_path):
    children = [start(tmp_path, "--seed", str(seed)) for seed in range(20)]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * 20, errors
    table = tmp_path / "results" / "results.csv"
    assert sorted(row["seed"] for row in read_csv(table)) == list(range(20))
    before = table.read_text()
    table.unlink()
    collate = [sys.executable, "-m", "cifar_keras", "collate", "--root", str(tmp_path)]
    subprocess.run(collate, check=True, stdout=subprocess.DEVNULL)
    assert table.read_text() == before
