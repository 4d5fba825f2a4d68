"""What PyTorch's pickles call to build tensors, as descriptions of views."""

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
# Newer dtypes have no storage of their own: bytes, and a dtype beside the shape.
BYTES = "UntypedStorage"
DTYPES: dict[str, Any] = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
# Views have fewer axes than this, and smaller numbers.
MOST_AXES, MOST_SIZE = 32, 1 << 62


@dataclass(frozen=True)
class Kind:
    """A storage class by name."""

    name: str


@dataclass(frozen=True)
class Dtype:
    """A dtype of PyTorch's."""

    numbers: np.dtype


class Storage:
    """A run of numbers in the file, checked against its checksum when first read."""

    def __init__(self, file: Path, info: zipfile.ZipInfo, dtype: np.dtype):
        """`info` is of the entry that holds the numbers."""
        self.file, self.info, self.dtype = file, info, dtype
        self.count = info.file_size // dtype.itemsize

    @cached_property
    def offset(self) -> int:
        """Where the numbers begin."""
        with open(self.file, "rb") as stream:
            stream.seek(self.info.header_offset)
            local = stream.read(30)
            if len(local) < 30 or local[:4] != b"PK\x03\x04":
                raise damaged(self.file, f"no entry {self.info.filename}")
            name, extra = struct.unpack("<HH", local[26:30])
            offset = self.info.header_offset + 30 + name + extra
            stream.seek(offset)
            left, crc = self.info.file_size, 0
            while left:
                part = stream.read(min(left, 1 << 20))
                if not part:
                    raise damaged(self.file, f"{self.info.filename} is cut off")
                crc, left = zlib.crc32(part, crc), left - len(part)
        if crc != self.info.CRC:
            raise damaged(self.file, f"{self.info.filename} has a wrong checksum")
        return offset

    def view(self, first: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        """A copy of a strided view."""
        reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        count = 0 if 0 in shape else reach + 1
        size = self.dtype.itemsize
        offset = self.offset + first * size
        raw = np.fromfile(self.file, np.uint8, count * size, offset=offset)
        flat = raw.view(self.dtype)
        if count == math.prod(shape) and strides == _contiguous(shape):
            return flat.reshape(shape)
        steps = [s * size for s in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps).copy()


@dataclass(frozen=True)
class View:
    """What `_rebuild_tensor_v2` asks for."""

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage, first, shape, strides, grad=False, hooks=None, metadata=None):
    numbers = [first]
    for some in (shape, strides):
        if not isinstance(some, tuple) or len(some) > MOST_AXES:
            raise PickleError("a tensor has a shape that makes no sense")
        numbers += some
    good = isinstance(storage, Storage) and len(shape) == len(strides)
    if not good or not all(type(n) is int and 0 <= n < MOST_SIZE for n in numbers):
        raise PickleError("a tensor has a shape that makes no sense")
    if metadata:
        raise PickleError("a tensor has bits (negated, conjugated) that are not known")
    # Views that repeat numbers could be of any size.
    reach = first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 in shape:
        return View(storage, 0, shape, _contiguous(shape))
    if reach >= storage.count or math.prod(shape) > storage.count:
        raise PickleError(
            f"a tensor of shape {shape} lies outside its {storage.count} numbers"
        )
    return View(storage, first, shape, strides)


def _rebuild_bytes(storage, first, shape, strides, grad, hooks, dtype, metadata=None):
    if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
        raise PickleError("a tensor has a dtype that is not known")
    typed = Storage(storage.file, storage.info, dtype.numbers)
    return _rebuild(typed, first, shape, strides, grad, hooks, metadata)


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
        raise PickleError("a dict is made in a way that is not known")
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
    """The error of a file that cannot be used."""
    return DataError(f"'{file}' cannot be used: {reason}")
