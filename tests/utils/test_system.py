"""What differs between operating systems, tried by taking POSIX away, and by Windows' rules where they matter."""

import os
import signal
import subprocess
import sys

import pytest

from cifar_keras.config import RunFailedError
from cifar_keras.utils import files, system
from cifar_keras.utils.text import file_name

WITHOUT_POSIX = """
import os, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None  # importing it fails
for name in ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1"):
    hasattr(signal, name) and delattr(signal, name)
for name in ("fork", "getuid", "geteuid", "getpgid", "killpg", "nice", "sched_getaffinity", "setsid", "sysconf"):
    hasattr(os, name) and delattr(os, name)
"""
EVERYTHING = """
import importlib, json, pathlib, pkgutil
import cifar_keras
from cifar_keras import cli
from cifar_keras.config import Experiment, Stage, Training
for module in pkgutil.walk_packages(cifar_keras.__path__, "cifar_keras."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

def called(function, *arguments):
    try:
        function(*arguments)
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)

called(cli.command, ["doctor", "--root", "."])
recipe = Training("scratch_cnn", (Stage(1, 1e-3),))
options = ["--dataset", "shapes", "--limit", "8", "--epochs", "1", "--batch-size", "8", "--root", "."]
called(cli.main, Experiment(4, "scratch", {"best": recipe}, published={"test": 0.5}), options)
(record,) = pathlib.Path("results/runs").glob("*.json")
assert json.loads(record.read_text())["peak_memory_mb"] is None or os.name == "nt"
called(cli.command, ["compare", "results/results.csv"])
(model,) = pathlib.Path("model_cp").glob("*.keras")
from cifar_keras.data import shapes
called(cli.command, ["predict", str(model), str(shapes.write("images", per_class=1)), "--json", "--root", "."])
print("cat \\u732b")
"""


@pytest.fixture(scope="module")
def without_posix(tmp_path_factory):
    """The output of a process that uses the package without POSIX, and prints in an encoding of 256 characters."""
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    line = [sys.executable, "-W", "ignore", "-c", WITHOUT_POSIX + EVERYTHING]
    folder = tmp_path_factory.mktemp("windows")
    done = subprocess.run(line, env=environment, capture_output=True, cwd=folder)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode("cp1252")


def test_doctor_training_and_prediction_work_without_posix(without_posix):
    assert "missing, " in without_posix and "oneDNN" in without_posix  # doctor's findings
    assert '"top": [{"class": ' in without_posix


def test_a_character_that_the_console_lacks_is_escaped(without_posix):
    assert without_posix.rstrip().endswith("cat \\u732b")


@pytest.mark.parametrize(("refusals", "written"), [(2, True), (99, False)])
def test_windows_waits_for_programs_that_have_a_file_open_then_names_them(refusals, written, tmp_path, monkeypatch):
    path, real, left = tmp_path / "a.txt", os.replace, [None] * refusals

    def replace(source, target):
        if left:
            left.pop()
            raise PermissionError(13, "Permission denied")
        real(source, target)

    path.write_text("old")
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(system, "PATIENCE", (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "replace", replace)
    if written:
        files.write_text(path, "new")
    else:
        with pytest.raises(RunFailedError, match="Permission denied. .* Close programs that have it open"):
            files.write_text(path, "new")
    assert path.read_text() == ("new" if written else "old")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_on_windows_no_process_is_ended_by_looking_for_it_and_ctrl_c_is_sent_once(monkeypatch):
    sent = []

    class Child:
        terminate = staticmethod(lambda: sent.append("terminated"))
        send_signal = staticmethod(sent.append)

    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    assert system.is_alive(1)
    system.pass_on(signal.SIGINT, Child)
    assert sent == []
    system.pass_on(signal.SIGTERM, Child)
    assert sent == ["terminated"]


def test_the_peak_of_memory_is_in_mebibytes():
    assert 10 < system.peak_memory_mb() < 2**20


def test_names_of_files_hold_no_character_that_some_system_forbids():
    assert file_name('a/b:c\\d "e"?.png') == "a_b_c_d _e__.png"
