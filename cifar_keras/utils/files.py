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

ABANDONED = 600  # seconds: whoever writes a file touches it more often


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path with the same ending; moves it to `path` once the block has succeeded.

    A reader sees the old file or the new one, whole, even after a power cut (fsync before and after the rename).
    What a killed writer of the same path left beside it is removed once nobody has touched it for ten minutes.

    Raises: RunFailedError where the folder can't be written or the disk is full; `path` is then as before.
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
        # HDF5 says in words what the system said, as a RuntimeError where it happens on closing.
        number = getattr(error, "errno", None) or int((re.search(r"errno = (\d+)", str(error)) or [0, 0])[1])
        if isinstance(error, RuntimeError) and not number:
            raise
        raise _unwritable(path, number, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def settle(temporary, path):
    """Moves a finished file to its place in the same folder, so that it stands there even after a power cut."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _unwritable(path, number, error):
    return RunFailedError(
        f"Could not write {path}: {os.strerror(number) if number else error}. What stood there before is unchanged. "
        "Free some space, or choose a folder that can be written to (`--root DIR`), then run the same command."
    )


def sweep(path, *, age=0):
    """Removes what killed writers of a path left beside it, if nobody has touched it for `age` seconds.

    Without an age the caller holds the lock that all writers of the path take.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".????????.{glob.escape(path.name)}"):  # eight: `mkstemp`'s own part of the name
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime >= age:
                leftover.unlink()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path, text):
    """Writes UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Writes indented JSON whole or not at all; NaN and infinity are refused, for other readers' sake."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sha256(path):
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path, *, timeout=60.0, busy="Another process is using it."):
    """Holds an advisory lock beside `path`; the operating system frees it when its owner dies.

    Raises: HeldError after `timeout` seconds, with the sentence `busy` and which process holds it; RunFailedError where
        the folder can't be written.
    """
    path = Path(path)
    # Beside the lock and not in it: on NFS, closing any descriptor of the locked file would free the lock. The ending
    # has git ignore it.
    owner = path.with_name(f".{path.name}.owner.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)
        guard.acquire()
    except Timeout:
        raise HeldError(f"{path} is in use. {busy} {_said_of(owner)}") from None
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


def _said_of(owner):
    """The holder of a lock in a sentence; between lock and note there may be none yet, or a killed holder's."""
    try:
        note = json.loads(owner.read_text(encoding="utf-8"))
        if note["host"] == platform.node():
            os.kill(note["process"], 0)
        return f"It is process {note['process']} on {note['host']}, since {note['since']}."
    except PermissionError:  # alive, another user's
        return f"It is process {note['process']}, another user's."
    except (OSError, ValueError, KeyError):
        return "It has just begun."
