"""Whole-or-not-at-all writes, and locks between processes."""

import contextlib
import datetime
import glob
import hashlib
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_keras.config import HeldError, RunFailedError
from cifar_keras.utils import system

ABANDONED = 600  # seconds: a process that still writes a file touches it more often


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path with the same ending, and moves it to `path` if the block succeeds.

    A reader sees either the whole old file or the whole new one, even after a power cut (fsync before and after the
    rename). Temporary files that a killed writer of the same path left are removed after ten minutes.

    Raises: RunFailedError if the folder can't be written or the disk is full; `path` then stays as it was.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path, age=ABANDONED)
        # The ending stays (Keras reads the format from it); the leading dot keeps globs from finding it.
        handle, name = tempfile.mkstemp(prefix=".", suffix=f".{path.name}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        settle(temporary, path)
    except (OSError, RuntimeError) as error:
        # If writing fails on closing, HDF5 raises a RuntimeError with the system's error in its text.
        number = getattr(error, "errno", None) or int((re.search(r"errno = (\d+)", str(error)) or [0, 0])[1])
        if isinstance(error, RuntimeError) and not number:
            raise
        raise _unwritable(path, number, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # on Windows, something may still have it open
                temporary.unlink()


def settle(temporary, path):
    """Moves a finished file to its place in the same folder, so that it is there even after a power cut."""
    system.sync(temporary)
    system.replace(temporary, path)
    system.sync(path.parent)


def _unwritable(path, number, error):
    held = system.WINDOWS and isinstance(error, PermissionError)
    fix = "Close programs that have it open" if held else "Free some space"
    return RunFailedError(
        f"Could not write {path}: {os.strerror(number) if number else error}. Its former content is unchanged. "
        f"{fix}, or choose a folder that can be written to (`--root DIR`), then run the same command."
    )


def sweep(path, *, age=0):
    """Removes temporary files that killed writers of a path left, if they are older than `age` seconds.

    To call it without an age, hold the lock that all writers of the path take.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".????????.{glob.escape(path.name)}"):  # eight: `mkstemp`'s own part of the name
        with contextlib.suppress(FileNotFoundError, PermissionError):  # Windows keeps what is open
            if time.time() - leftover.stat().st_mtime >= age:
                leftover.unlink()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    """Writes UTF-8 text, whole or not at all, with the same line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path, value):
    """Writes indented JSON, whole or not at all. Refuses NaN and infinity, which are not valid JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sha256(path):
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path, *, timeout=60.0, busy="Another process is using it."):
    """Holds an advisory lock beside `path`. The operating system frees it when its owner dies.

    Raises: HeldError after `timeout` seconds, with the sentence `busy` and the process that holds the lock;
        RunFailedError if the folder can't be written.
    """
    path = Path(path)
    # The owner's note is a file of its own: on NFS, closing any descriptor of the locked file would free the lock. Its
    # ending makes git ignore it.
    owner = path.with_name(f".{path.name}.owner.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)
        guard.acquire()
    except Timeout:
        raise HeldError(f"{path} is in use. {busy} {_holder(owner)}") from None
    except OSError as error:
        raise _unwritable(path, error.errno, error) from error
    try:
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(owner, {"process": os.getpid(), "host": platform.node(), "since": started})
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        guard.release()


def _holder(owner):
    """A sentence on who holds a lock. There may be no note of the owner yet, or only that of a killed one."""
    try:
        note = json.loads(owner.read_text(encoding="utf-8"))
        if note["host"] != platform.node() or system.is_alive(note["process"]):
            return f"It is process {note['process']} on {note['host']}, since {note['since']}."
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return "It has just begun."
