"""PyTorch's zip files (.pt, .pth, .bin, .ckpt), read without running them.

Such a file holds a pickle, which is a program. Only the few functions that build
tensors are known here, as descriptions of views; any other name stops the reading.
"""

import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxspec.convert.reading.stored import Stored
from jaxspec.errors import DataError

# Larger programs than this describe no model.
MOST_PICKLE = 64 << 20
STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "Float8_e4m3fnStorage": ml_dtypes.float8_e4m3fn,
    "Float8_e5m2Storage": ml_dtypes.float8_e5m2,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Opcodes that neither torch writes nor a description of tensors needs.
REFUSED = {
    "EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID", "NEWOBJ_EX", "NEXT_BUFFER",
    "READONLY_BUFFER",
}  # fmt: skip


class _Sealed:
    """Cannot be changed by the program that asked for it."""

    def __setstate__(self, state):
        raise pickle.UnpicklingError("its pickle changes what it was given")


@dataclass(frozen=True)
class _Kind(_Sealed):
    """A storage class by name."""

    name: str


@dataclass(frozen=True)
class _Function(_Sealed):
    """A function by what it does here."""

    run: Callable[..., Any]

    def __call__(self, *arguments):
        return self.run(*arguments)


class _Storage(_Sealed):
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
class _View(_Sealed):
    """What `_rebuild_tensor_v2` asks for."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage, first, shape, strides, *_) -> _View:
    shape, strides = tuple(shape), tuple(strides)
    numbers = (first, *shape, *strides)
    good = isinstance(storage, _Storage) and len(shape) == len(strides)
    good = good and all(type(n) is int and n >= 0 for n in numbers)
    if not good:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} makes no sense")
    # Views that repeat numbers could be of any size.
    reach = first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and (reach >= storage.count or math.prod(shape) > storage.count):
        raise pickle.UnpicklingError(
            f"a tensor of shape {shape} lies outside its {storage.count} numbers"
        )
    return _View(storage, first, shape, strides)


def _parameter(data, *_):
    return data


class Inert:
    """Stands for an object of a class that was not loaded; nothing acts on it."""

    def __new__(cls, *_, **__):
        """Takes anything."""
        return object.__new__(cls)

    def __init__(self, *_, **__):
        """Takes anything."""

    def __setstate__(self, state):
        """Takes anything."""

    def __setitem__(self, key, value):
        """Takes anything."""

    def append(self, item):
        """Takes anything."""

    def extend(self, items):
        """Takes anything."""

    def __call__(self, *_, **__):
        """Gives another of its kind."""
        return Inert()


class _Unpickler(pickle.Unpickler):
    KNOWN = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor"): _Function(_rebuild),
        ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild),
        ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
        ("torch", "Size"): tuple,
    }

    def __init__(self, program: bytes, storage, lenient: bool):
        super().__init__(BytesIO(program))
        self._storage, self._lenient = storage, lenient
        self.refused: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        known = self.KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _Kind(name)
        whole = f"{module}.{name}"
        if not self._lenient:
            raise pickle.UnpicklingError(
                f"it wants to use {whole}, which no tensor needs. If you trust where "
                "the file is from, --allow-objects leaves such objects out without "
                "loading them"
            )
        self.refused.append(whole)
        return type(name, (Inert,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"an unknown kind of reference: {pid!r}"[:120])
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, _Kind) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"an unknown kind of storage: {kind!r}"[:120])
        return self._storage(kind.name, key, count)


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
    if magic[:4] != b"PK\x03\x04":
        raise _damaged(file, _other_format(magic))
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


def _other_format(magic: bytes) -> str:
    if magic[:1] == b"\x80":
        return (
            "it is in PyTorch's format from before 1.6, a bare pickle. Where you trust "
            "it, load it with PyTorch and save its state dict again"
        )
    if not magic.strip(b"\0"):
        return "it is empty; fetch it again"
    return (
        "it is neither a safetensors file nor a zip file of PyTorch; check what was "
        "downloaded"
    )


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

    def storage(kind: str, key: str, count: Any) -> _Storage:
        if (kind, key) not in found:
            info = entries.get(f"{root}data/{key}")
            if info is None:
                raise pickle.UnpicklingError(f"storage {key!r} is missing")
            made = _Storage(file, info, np.dtype(STORAGES[kind]))
            if type(count) is not int or count * made.dtype.itemsize > info.file_size:
                raise pickle.UnpicklingError(f"storage {key!r} is shorter than {count}")
            found[kind, key] = made
        return found[kind, key]

    reader = _Unpickler(text, storage, allow_objects)
    try:
        _look_over(text)
        value = reader.load()
    except DataError:
        raise
    except Exception as error:  # a hostile program can make unpickling raise anything
        raise _damaged(file, str(error) or repr(error)) from None
    return _described(value, file), reader.refused


def _look_over(program: bytes) -> None:
    """Refuses opcodes and memory tricks that no description of tensors needs."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if opcode.name in REFUSED:
            raise pickle.UnpicklingError(f"its pickle uses {opcode.name}")
        # The memo is an array: a huge index would make it huge.
        if opcode.name.endswith("PUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError("its pickle counts its memo wrongly")


def _described(value: Any, file: Path, depth: int = 0) -> Any:
    """Views as `Stored`, in dicts, down to a few levels."""
    if isinstance(value, _View):
        storage, view = value.storage, value

        def read() -> np.ndarray:
            return storage.view(view.first, view.shape, view.strides)

        return Stored(view.shape, storage.dtype, file, read)
    if isinstance(value, dict) and depth < 8:
        return {k: _described(v, file, depth + 1) for k, v in value.items()}
    return value
