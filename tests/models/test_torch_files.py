"""Tensors are read from PyTorch's old format, and nothing else is."""

import collections
import io
import os
import pickle
import struct

import numpy as np
import pytest

from cifar_keras.config import ConfigError
from cifar_keras.models.torch_files import MAGIC, PROTOCOL, read_tensors


class Storage(str):
    """What stands for a storage while such a file is written."""


class Global:
    """A name that the file asks for."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Pickler(pickle._Pickler):
    """Writes storages as persistent ids, and calls of any global function, without importing either."""

    def persistent_id(self, value):
        return (
            ("storage", Global("torch", "FloatStorage"), str(value), "cpu", 6, None)
            if isinstance(value, Storage)
            else None
        )

    def save(self, value, **options):
        if not isinstance(value, Global):
            return super().save(value, **options)
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        if value.arguments:
            super().save(value.arguments)
            self.write(pickle.REDUCE)
        return None


def tensor(storage, offset, shape, stride):
    return Global("torch._utils", "_rebuild_tensor_v2", Storage(storage), offset, shape, stride, False, {})


def written(path, content, *, storages=("7",), numbers=6, magic=MAGIC, cut=0):
    """A file in the old format: three headers, the content, the storages' keys, the numbers."""
    file = io.BytesIO()
    for head in (magic, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True}, content, list(storages)):
        Pickler(file, 2).dump(head)
    for _ in storages:
        file.write(struct.pack("<q", numbers) + np.arange(6, dtype="<f4").tobytes())
    path.write_bytes(file.getvalue()[: len(file.getvalue()) - cut])
    return path


def test_tensors_and_views_are_read(tmp_path):
    content = collections.OrderedDict(
        whole=tensor("7", 0, (2, 3), (3, 1)), part=tensor("7", 2, (2,), (3,)), turned=tensor("7", 0, (3, 2), (1, 3))
    )
    found = read_tensors(written(tmp_path / "a.pth", content))
    np.testing.assert_array_equal(found["whole"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["part"], [2, 5])
    np.testing.assert_array_equal(found["turned"], found["whole"].T)
    assert found["whole"].dtype == np.float32 and found["part"].flags.writeable


@pytest.mark.parametrize(
    ("module", "name", "argument"), [("os", "system", "exit 1"), ("builtins", "eval", "1"), ("torch", "load", "a")]
)
def test_a_file_that_calls_anything_else_is_refused_and_nothing_is_called(
    tmp_path, monkeypatch, module, name, argument
):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it was called"))
    path = written(tmp_path / "a.pth", {"weight": Global(module, name, argument)})
    with pytest.raises(ConfigError, match=f"asks for {module}.{name}, and only tensors are read"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"a": tensor("7", 4, (2, 2), (2, 1))}, {}, "reaches beyond its storage"),
        ({"a": tensor("7", -1, (2,), (1,))}, {}, "impossible shape"),
        ({"a": tensor("7", 0, (2,), (-1,))}, {}, "impossible shape"),
        ({"a": tensor("8", 0, (2,), (1,))}, {}, "don't belong together"),
        ({"a": 3}, {}, "something else than a dictionary of tensors"),
        ([1, 2], {}, "something else than a dictionary of tensors"),
        ({"a": tensor("7", 0, (2,), (1,))}, {"magic": 1}, "another format"),
        ({"a": tensor("7", 0, (2,), (1,))}, {"cut": 4}, "ends early"),
        ({"a": tensor("7", 0, (2,), (1,))}, {"numbers": 2**40}, "a storage of 1099511627776 elements"),
        ({"a": tensor("7", 0, (2,), (1,))}, {"numbers": -1}, "a storage of -1 elements"),
    ],
)
def test_a_damaged_or_forged_file_is_refused_with_a_reason(tmp_path, content, options, message):
    with pytest.raises(ConfigError, match=message):
        read_tensors(written(tmp_path / "a.pth", content, **options))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip file, as PyTorch writes today", b"\x80\x02."])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(ConfigError, match="must be a file of tensors in PyTorch's format from before version 1.6"):
        read_tensors(tmp_path / "a.pth")
