"""Whole-or-not-at-all writes, and locks between processes."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_keras.config import HeldError, RunFailedError


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path with the same ending; moves it to `path` once the block has succeeded.

    A reader sees the old file or the new one, whole, even after a power cut (fsync before and after the rename).

    Raises: RunFailedError where the folder can't be written or the disk is full; `path` is then as before.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The ending stays (Keras reads the format from it); the leading dot keeps globs from finding it.
        handle, name = tempfile.mkstemp(prefix=".", suffix=f".{path.name}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise RunFailedError(
            f"Could not write {path}: {error.strerror or error}. What stood there before is unchanged. "
            "Free some space, or choose a folder that can be written to (`--root DIR`), then run the same command."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


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

    Raises: HeldError with the sentence `busy` after `timeout` seconds.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    guard = FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)
    try:
        guard.acquire()
    except Timeout:
        raise HeldError(f"{path} is in use. {busy}") from None
    try:
        yield
    finally:
        guard.release()
