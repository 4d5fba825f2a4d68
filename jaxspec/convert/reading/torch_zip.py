"""PyTorch's zip files (.pt, .pth, .bin, .ckpt), read without running them.

Such a file holds a pickle, which is a program; see `pickled`. Only the few functions
that build tensors are known, as descriptions of views; any other name is refused.
"""

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

from jaxspec.convert.reading.formats import ZIP, other_format
from jaxspec.convert.reading.pickled import (
    INERT,
    Function,
    Interpreter,
    PickleError,
)
from jaxspec.convert.reading.stored import Stored, printable
from jaxspec.errors import DataError

# Larger programs than this describe no model.
MOST_PICKLE = 64 << 20
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
class _Kind:
    """A storage class by name."""

    name: str


@dataclass(frozen=True)
class _Dtype:
    """A dtype of PyTorch's."""

    numbers: np.dtype


class _Storage:
    """A run of numbers in the file, checked against its checksum when first read."""

    def __init__(self, file: Path, info: zipfile.ZipInfo, dtype: np.dtype):
        self.file, self.info, self.dtype = file, info, dtype
        self.count = info.file_size // dtype.itemsize

    @cached_property
    def offset(self) -> int:
        """Where the numbers begin."""
        with open(self.file, "rb") as stream:
            stream.seek(self.info.header_offset)
            local = stream.read(30)
            if len(local) < 30 or local[:4] != b"PK\x03\x04":
                raise _damaged(self.file, f"no entry {self.info.filename}")
            name, extra = struct.unpack("<HH", local[26:30])
            offset = self.info.header_offset + 30 + name + extra
            stream.seek(offset)
            left, crc = self.info.file_size, 0
            while left:
                part = stream.read(min(left, 1 << 20))
                if not part:
                    raise _damaged(self.file, f"{self.info.filename} is cut off")
                crc, left = zlib.crc32(part, crc), left - len(part)
        if crc != self.info.CRC:
            raise _damaged(self.file, f"{self.info.filename} has a wrong checksum")
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
class _View:
    """What `_rebuild_tensor_v2` asks for."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage, first, shape, strides, grad=False, hooks=None, metadata=None):
    numbers = [first]
    for some in (shape, strides):
        if not isinstance(some, tuple) or len(some) > MOST_AXES:
            raise PickleError("a tensor has a shape that makes no sense")
        numbers += some
    good = isinstance(storage, _Storage) and len(shape) == len(strides)
    if not good or not all(type(n) is int and 0 <= n < MOST_SIZE for n in numbers):
        raise PickleError("a tensor has a shape that makes no sense")
    if metadata:
        raise PickleError("a tensor has bits (negated, conjugated) that are not known")
    # Views that repeat numbers could be of any size.
    reach = first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 in shape:
        return _View(storage, 0, shape, _contiguous(shape))
    if reach >= storage.count or math.prod(shape) > storage.count:
        raise PickleError(
            f"a tensor of shape {shape} lies outside its {storage.count} numbers"
        )
    return _View(storage, first, shape, strides)


def _rebuild_bytes(storage, first, shape, strides, grad, hooks, dtype, metadata=None):
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
        raise PickleError("a tensor has a dtype that is not known")
    typed = _Storage(storage.file, storage.info, dtype.numbers)
    return _rebuild(typed, first, shape, strides, grad, hooks, metadata)


def _parameter(data, *_):
    if not isinstance(data, _View):
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
    **{("torch", name): _Dtype(np.dtype(kind)) for name, kind in DTYPES.items()},
}


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(f"'{file}' cannot be used: {reason}")


def read_torch(file: Path, *, allow_objects: bool = False) -> tuple[Any, list[str]]:
    """What a file holds, tensors as `Stored`, and the names of what was left out.

    Args:
      file: in PyTorch's zip format.
      allow_objects: let objects that are no tensors be replaced by inert ones; their
        code is not run and not even looked for.

    Raises:
      DataError: it is of another format, damaged, or holds anything else than tensors
        in plain containers.
    """
    with open(file, "rb") as stream:
        magic = stream.read(8)
    if magic[:4] != ZIP:
        raise _damaged(file, other_format(magic))
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(file, archive, allow_objects)
    except (DataError, OSError):
        raise
    except Exception as error:  # a damaged zip file can raise more than BadZipFile
        reason = str(error).replace("\n", " ")[:120]
        raise _damaged(
            file, f"it is truncated or damaged ({reason}); fetch it again"
        ) from None


def _read_archive(
    file: Path, archive: zipfile.ZipFile, allow_objects: bool
) -> tuple[Any, list[str]]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise _damaged(file, f"it has two entries '{info.filename}'")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _damaged(
                file, f"'{info.filename}' is compressed, PyTorch's never are"
            )
        entries[info.filename] = info
    programs = [n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if any(name.endswith("/constants.pkl") for name in entries):
        raise _damaged(file, "it is a TorchScript program; save the state dict instead")
    if len(programs) != 1:
        raise _damaged(file, "it is a zip file, but not one of PyTorch's")
    [program] = programs
    root = program.removesuffix("data.pkl")
    if entries[program].file_size > MOST_PICKLE:
        raise _damaged(file, f"its pickle has {entries[program].file_size} bytes")
    order = entries.get(root + "byteorder")
    if order is not None and archive.read(order).strip() != b"little":
        raise _damaged(file, "its numbers are big-endian; save it on another machine")
    text = archive.read(program)
    found: dict[tuple[str, str], _Storage] = {}
    refused: list[str] = []

    def find(module: str, name: str) -> Any:
        known = KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and name in (*STORAGES, BYTES):
            return _Kind(name)
        refused.append(printable(f"{module}.{name}"))
        return INERT

    def refer(reference: Any) -> _Storage:
        if not isinstance(reference, tuple) or len(reference) < 5:
            raise PickleError("it has a reference of an unknown kind")
        mark, kind, key, _, count = reference[:5]
        if mark != "storage" or not isinstance(kind, _Kind) or not isinstance(key, str):
            raise PickleError("it has a storage of an unknown kind")
        if (kind.name, key) not in found:
            info = entries.get(f"{root}data/{key}")
            if info is None:
                raise PickleError(f"storage {printable(key)} is missing")
            made = _Storage(file, info, np.dtype(STORAGES.get(kind.name, np.uint8)))
            if type(count) is not int or not 0 <= count <= made.count:
                raise PickleError(f"storage {printable(key)} is shorter than it says")
            found[kind.name, key] = made
        return found[kind.name, key]

    try:
        value = _described(Interpreter(find, refer).run(text), file)
    except PickleError as error:
        if not refused or allow_objects:
            raise _damaged(file, str(error)) from None
        value = None  # what is refused comes first
    if refused and not _weights(value):
        raise _damaged(file, _no_weights(refused))
    if refused and not allow_objects:
        raise _damaged(
            file,
            f"it wants to use {refused[0]}, which no tensor needs. If you trust where "
            "the file is from, --allow-objects leaves such objects out without loading "
            "them",
        )
    return value, refused


def _weights(value: Any) -> bool:
    """Whether tensors by name are there, in a dict or in a dict that it holds."""
    inside = list(value.values()) if isinstance(value, dict) else []
    inside += [x for d in inside if isinstance(d, dict) for x in d.values()]
    return any(isinstance(x, Stored) for x in inside)


def _no_weights(refused: list[str]) -> str:
    """What a file is that holds objects, and no tensors by name beside them."""
    tensors = [name for name in refused if name.startswith("torch._utils._rebuild")]
    if tensors:
        return (
            f"its tensors are of a kind that is not read ({tensors[0]}); save them as "
            "plain dense ones"
        )
    return (
        f"it holds a whole object ({refused[0]}) and no tensors by name: only the code "
        "that made it can read it. Where you trust it, load it with that code and save "
        "its state_dict()"
    )


def _described(value: Any, file: Path) -> Any:
    """Views as `Stored`: in a dict, and in the dicts that it holds."""
    known: dict[int, Any] = {}

    def one(x: Any, depth: int) -> Any:
        if isinstance(x, _View):
            return Stored(
                x.shape,
                x.storage.dtype,
                file,
                lambda: x.storage.view(x.first, x.shape, x.strides),
            )
        if isinstance(x, dict) and depth < 2:
            if id(x) not in known:
                known[id(x)] = {k: one(v, depth + 1) for k, v in x.items()}
            return known[id(x)]
        return x

    return one(value, 0)
