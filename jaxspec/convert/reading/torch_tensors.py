"""Functions of PyTorch's pickles that build tensors; here they return lazy views."""

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxspec.convert.reading.pickled import Function, PickleError
from jaxspec.errors import DataError

STORAGES: dict[str, Any] = {
    "ComplexDoubleStorage": np.complex128,
    "ComplexFloatStorage": np.complex64,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Newer dtypes have no storage class: a storage of bytes, and a dtype argument.
BYTES = "UntypedStorage"
DTYPES: dict[str, Any] = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
# Limits for the number of axes, and for sizes, strides and offsets.
MAX_AXES, MAX_SIZE = 32, 1 << 62


@dataclass(frozen=True)
class StorageClass:
    """A storage class of PyTorch's, by name."""

    name: str


@dataclass(frozen=True)
class Dtype:
    """A dtype of PyTorch's, as a NumPy dtype."""

    numpy: np.dtype


class Storage:
    """A one-dimensional array in a file, with a checksum that is verified on read."""

    def __init__(self, file: Path, info: zipfile.ZipInfo, dtype: np.dtype):
        """Takes the zip entry `info` that holds the array."""
        self.file, self.info, self.dtype = file, info, dtype
        self.count = info.file_size // dtype.itemsize

    @cached_property
    def offset(self) -> int:
        """Offset of the array in the file in bytes; verifies the checksum.

        Raises:
          DataError: the entry is damaged.
        """
        with open(self.file, "rb") as stream:
            stream.seek(self.info.header_offset)
            header = stream.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise damaged(self.file, f"no entry {self.info.filename}")
            name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
            offset = self.info.header_offset + 30 + name_bytes + extra_bytes
            stream.seek(offset)
            remaining, crc = self.info.file_size, 0
            while remaining:
                chunk = stream.read(min(remaining, 1 << 20))
                if not chunk:
                    raise damaged(self.file, f"{self.info.filename} is cut off")
                crc, remaining = zlib.crc32(chunk, crc), remaining - len(chunk)
        if crc != self.info.CRC:
            raise damaged(self.file, f"{self.info.filename} has a wrong checksum")
        return offset

    def view(self, first: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        """Reads a copy of a strided view.

        Args:
          first: index of the view's first element.
          shape: shape of the view.
          strides: strides of the view in elements.
        """
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        count = 0 if 0 in shape else last + 1
        itemsize = self.dtype.itemsize
        offset = self.offset + first * itemsize
        raw = np.fromfile(self.file, np.uint8, count * itemsize, offset=offset)
        flat = raw.view(self.dtype)
        if count == math.prod(shape) and strides == _contiguous(shape):
            return flat.reshape(shape)
        byte_strides = [s * itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, byte_strides).copy()


@dataclass(frozen=True)
class View:
    """Arguments of `_rebuild_tensor_v2`, a strided view of a storage.

    Attributes:
      storage: storage of the elements.
      first: index of the first element.
      shape: shape of the view.
      strides: strides of the view in elements.
    """

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage, first, shape, strides, grad=False, hooks=None, metadata=None):
    numbers = [first]
    for values in (shape, strides):
        if not isinstance(values, tuple) or len(values) > MAX_AXES:
            raise PickleError("a tensor has an invalid shape")
        numbers += values
    is_valid = isinstance(storage, Storage) and len(shape) == len(strides)
    if not is_valid or not all(type(n) is int and 0 <= n < MAX_SIZE for n in numbers):
        raise PickleError("a tensor has an invalid shape")
    if metadata:
        raise PickleError(
            "a tensor has flags (negated, conjugated) that are not supported"
        )
    # Views that repeat elements could have any size.
    last = first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 in shape:
        return View(storage, 0, shape, _contiguous(shape))
    if last >= storage.count or math.prod(shape) > storage.count:
        raise PickleError(
            f"a tensor of shape {shape} exceeds its storage of {storage.count} elements"
        )
    return View(storage, first, shape, strides)


def _rebuild_bytes(storage, first, shape, strides, grad, hooks, dtype, metadata=None):
    if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
        raise PickleError("a tensor has a dtype that is not supported")
    typed_storage = Storage(storage.file, storage.info, dtype.numpy)
    return _rebuild(typed_storage, first, shape, strides, grad, hooks, metadata)


def _parameter(data, *_):
    if not isinstance(data, View):
        raise PickleError("a parameter is no tensor")
    return data


def _size(*arguments):
    if len(arguments) != 1 or not isinstance(arguments[0], tuple):
        raise PickleError("a size is no tuple")
    return arguments[0]


def _ordered(*arguments):
    if arguments and not (len(arguments) == 1 and arguments[0] in ([], ())):
        raise PickleError("an OrderedDict has arguments that are not supported")
    return {}


KNOWN = {
    ("collections", "OrderedDict"): Function(_ordered),
    ("torch._utils", "_rebuild_tensor"): Function(_rebuild),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild),
    ("torch._utils", "_rebuild_tensor_v3"): Function(_rebuild_bytes),
    ("torch._utils", "_rebuild_parameter"): Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Function(_parameter),
    ("torch", "Size"): Function(_size),
    **{("torch", name): Dtype(np.dtype(kind)) for name, kind in DTYPES.items()},
}


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def damaged(file: Path, reason: str) -> DataError:
    """Returns the error for a file that cannot be used."""
    return DataError(f"'{file}' cannot be used: {reason}")
