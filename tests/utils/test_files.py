"""Whole-or-not-at-all writes and locks."""

import json
import os
import subprocess
import sys

import pytest

from cifar_keras.config import HeldError, RunFailedError
from cifar_keras.utils import files


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


def test_what_a_killed_writer_left_goes_once_it_is_old_or_at_once_for_who_holds_the_lock(tmp_path):
    path, old, young, other = (
        tmp_path / name for name in ("a.h5", ".abcdefgh.a.h5", ".ijklmnop.a.h5", ".abcdefgh.b.h5")
    )
    for left in (old, young, other):
        left.touch()
    os.utime(old, (0, 0))
    files.write_text(path, "x")
    assert not old.exists() and young.exists() and other.exists()
    files.sweep(path)
    assert not young.exists() and other.exists() and path.read_text() == "x"


def test_hdf5s_own_words_for_a_full_disk_become_the_same_sentence(tmp_path):
    with pytest.raises(RunFailedError, match="No space left on device. Its former content"):
        with files.replacing(tmp_path / "a.h5"):
            raise RuntimeError("Can't decrement id ref count (file write failed: errno = 28, error message = '...')")
    with pytest.raises(RuntimeError, match="another matter"), files.replacing(tmp_path / "a.h5"):
        raise RuntimeError("another matter")


@pytest.mark.skipif(os.name == "nt", reason="Windows does not show whether the owner lives")
def test_a_dead_owners_note_names_nobody(tmp_path):
    note = tmp_path / ".x.owner.lock"
    with files.lock(tmp_path / "x"):
        alive = json.loads(note.read_text())
        assert alive["process"] == os.getpid()
        note.write_text(json.dumps(alive | {"process": 2**22 + 1}))  # beyond the highest there is
        code = f"from cifar_keras.utils.files import lock\nwith lock({str(tmp_path / 'x')!r}, timeout=0): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("It has just begun.")
    assert not note.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
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
        "import sys; from cifar_keras.utils.files import lock\n"
        f"with lock({str(tmp_path / 'x')!r}):\n print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match="in use. Wait."), files.lock(tmp_path / "x", timeout=0, busy="Wait."):
            pass
        owner.kill()
    with files.lock(tmp_path / "x", timeout=0):
        pass
