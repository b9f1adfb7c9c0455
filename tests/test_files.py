"""Whole-or-not-at-all writes and locks."""

import os
import subprocess
import sys

import pytest

from cifar_keras import files
from cifar_keras.config import HeldError, RunFailedError


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_temporary_file_keeps_the_whole_ending(tmp_path):
    with files.replacing(tmp_path / "a.weights.h5") as temporary:
        assert temporary.name.endswith(".weights.h5")
        assert temporary.parent == tmp_path


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises(RunFailedError, match=r"Could not write .*--root DIR"):
        files.write_text(tmp_path / "models" / "a.txt", "x")


def test_files_are_readable_by_others_as_the_umask_says(tmp_path):
    files.write_text(tmp_path / "a", "x")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_lock_is_refused_while_another_process_holds_it_and_freed_when_that_dies(tmp_path):
    code = (
        "import sys; from cifar_keras.files import lock\n"
        f"with lock({str(tmp_path / 'x')!r}):\n print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match="in use. Wait."), files.lock(tmp_path / "x", timeout=0, busy="Wait."):
            pass
        owner.kill()
    with files.lock(tmp_path / "x", timeout=0):
        pass
