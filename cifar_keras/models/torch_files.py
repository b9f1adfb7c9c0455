"""Reads the tensors of a PyTorch file in its old format (before 1.6) without PyTorch, and nothing else.

Such a file is a series of pickles, and a pickle may call any function. Here only three names are known, and what they
stand for makes arrays; every other name is refused before it is looked up.
"""

import collections
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cifar_keras.config import ConfigError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format
DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
LARGEST = 2**28  # elements of a storage: far above any network here


@dataclass
class _Tensor:
    """A tensor whose numbers come later in the file."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages and ordered dictionaries."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for; raises UnpicklingError for any that a file of tensors has no use for."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: _Tensor(storage, offset, shape, stride)
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only tensors are read")

    def persistent_load(self, pid: Any) -> str:
        """Notes a storage, `('storage', type, key, device, elements, view)`, and returns its key."""
        match pid:
            case ("storage", np.dtype() as dtype, str() as key, str(), int(), None):
                self.storages[key] = dtype
                return key
        raise pickle.UnpicklingError("it holds a storage of an unknown kind")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict in PyTorch's old format, by name.

    Args:
        path: the file.
    Returns: float32 and int64 arrays.
    Raises: ConfigError if it is no such file, or holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            return _tensors(file)
    except (OSError, pickle.UnpicklingError, EOFError, struct.error, ValueError, TypeError, LookupError) as error:
        raise ConfigError(
            f"{path} must be a file of tensors in PyTorch's format from before version 1.6. Received: {error}."
        ) from None
    except Exception as error:  # a forged pickle can make the C unpickler raise nearly anything
        raise ConfigError(f"{path} can't be read as a file of tensors: {error!r}.") from None


def _tensors(file):
    head = [_Unpickler(file).load() for _ in range(3)]  # the last describes the machine that wrote it
    if head[:2] != [MAGIC, PROTOCOL] or head[2].get("little_endian") is not True:
        raise ValueError("another format")
    reader = _Unpickler(file)
    tensors, keys = reader.load(), _Unpickler(file).load()
    if not isinstance(tensors, dict) or not all(isinstance(each, _Tensor) for each in tensors.values()):
        raise ValueError("something else than a dictionary of tensors")
    if sorted(map(str, keys)) != sorted(reader.storages):
        raise ValueError("tensors and numbers that don't belong together")
    storages = {key: _numbers(file, reader.storages[key]) for key in keys}
    return {name: _view(tensor, storages[tensor.storage]) for name, tensor in tensors.items()}


def _numbers(file, dtype):
    (count,) = struct.unpack("<q", file.read(8))
    if not 0 <= count <= LARGEST:
        raise ValueError(f"a storage of {count} elements")
    data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise ValueError("a file that ends early")
    return np.frombuffer(data, dtype)


def _view(tensor, numbers):
    """The array of a tensor: where it begins in its storage, and how far apart its numbers are."""
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    if tensor.offset < 0 or min(tensor.stride, default=0) < 0 or min(tensor.shape, default=1) < 1:
        raise ValueError("a tensor of an impossible shape")
    if last >= len(numbers):
        raise ValueError("a tensor that reaches beyond its storage")
    strides = [step * numbers.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides).copy()
