"""Reader and writer for safetensors: 8 bytes of length, a JSON header, the arrays.

The `safetensors` package is not used because it needs PyTorch for bfloat16, and accepts
a header with duplicate names.
"""

import ast
import json
import math
import struct
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxspec.convert.reading.source import Stored, printable
from jaxspec.errors import DataError
from jaxspec.io.writing import whole_file

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
NAMES = {np.dtype(v): k for k, v in DTYPES.items()}
# Limit of the format for the size of the header in bytes.
MAX_HEADER = 100_000_000
# Limit of settings in the metadata that are read, in characters.
MAX_SETTINGS = 1 << 16
MAX_AXES, MAX_SIZE = 32, 1 << 62


def unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dict and refuses duplicate keys; for `object_pairs_hook` of `json`.

    Raises:
      ValueError: a key occurs twice.
    """
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {printable(key)} occurs twice")
        result[key] = value
    return result


def read_safetensors(file: Path) -> dict[str, Stored]:
    """Lists the tensors of a file by name, without reading their values.

    A tensor that a model has under several names may be stored under one of them. The
    metadata of the header map the other names to it; the result has all of them.

    Raises:
      DataError: the file is damaged, truncated, or no safetensors file.
    """
    total = file.stat().st_size
    header, start = _read_header(file, total)
    metadata = header.pop("__metadata__", None)
    spans, tensors = [], {}
    for name, entry in header.items():
        shape, dtype, begin, end = _read_entry(file, name, entry)
        name = printable(name)
        if start + end > total:
            raise _damaged(
                file, f"{name} ends at byte {start + end}, the file at {total}"
            )
        spans.append((begin, end, name))
        read = _reader(file, start + begin, shape, dtype)
        tensors[name] = Stored(shape, dtype, file, read)
    spans.sort()
    for (_, end, first), (begin, _, second) in zip(spans, spans[1:], strict=False):
        if begin < end:
            raise _damaged(file, f"{first} and {second} overlap")
    for other, name in metadata.items() if isinstance(metadata, dict) else ():
        if isinstance(name, str) and name in tensors and other not in tensors:
            tensors[printable(other)] = replace(tensors[name], alias=name)
    return tensors


def header_settings(file: Path) -> dict[str, Any]:
    """Settings of a model in the metadata of a file, as FlexTok has them.

    Its values are texts of Python literals. Those that are no mapping, or too long for
    settings, are left out: reading a literal takes hundreds of times its memory.

    Raises:
      DataError: the file is damaged, truncated, or no safetensors file.
    """
    header, _ = _read_header(file, file.stat().st_size)
    metadata = header.get("__metadata__")
    result = {}
    for key, text in metadata.items() if isinstance(metadata, dict) else ():
        if not isinstance(text, str) or text[:1] != "{" or len(text) > MAX_SETTINGS:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            result[printable(key)] = value
    return result


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(
        f"'{file}' is damaged or not a safetensors file ({reason}); fetch it again"
    )


def _read_header(file: Path, total: int) -> tuple[dict[str, Any], int]:
    """Returns the header of a file of `total` bytes, and the position of its arrays.

    Raises:
      DataError: the file has no valid header.
    """
    with open(file, "rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            raise _damaged(file, "it ends within its first 8 bytes")
        (length,) = struct.unpack("<Q", head)
        if length > MAX_HEADER or 8 + length > total:
            raise _damaged(
                file, f"its header would have {length} bytes, the file has {total}"
            )
        try:
            header = json.loads(stream.read(length), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise _damaged(file, f"header: {error}") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no object")
    return header, 8 + length


def _read_entry(
    file: Path, name: str, entry: Any
) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """Returns shape, dtype, begin and end of a tensor, from its entry in the header.

    Raises:
      DataError: the entry is invalid.
    """
    try:
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        raise _damaged(
            file,
            f"no usable entry for {printable(name)}, dtype {printable(str(kind))}",
        ) from None
    name = printable(name)
    numbers = (*shape, begin, end)
    if len(shape) > MAX_AXES or not all(
        type(n) is int and 0 <= n < MAX_SIZE for n in numbers
    ):
        raise _damaged(file, f"{name} has an invalid shape or position")
    is_empty = 0 in shape
    if is_empty and (begin != end or max(shape) >= 1 << 40):
        raise _damaged(file, f"{name} has the shape {shape}, but {end - begin} bytes")
    if not is_empty and end - begin != math.prod(shape) * dtype.itemsize:
        raise _damaged(file, f"{name} has the shape {shape}, but {end - begin} bytes")
    return shape, dtype, begin, end


def _reader(file: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype):
    def read() -> np.ndarray:
        count = math.prod(shape)
        # Reads bytes, because `np.fromfile` does not support ml_dtypes.
        raw = np.fromfile(file, np.uint8, count * dtype.itemsize, offset=offset)
        if raw.size != count * dtype.itemsize:
            raise DataError(f"'{file}' was cut off while it was read; fetch it again")
        return raw.view(dtype).reshape(shape)

    return read


def write_safetensors(
    file: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], Any]],
    read,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a file one tensor at a time.

    Args:
      file: path of the file, which is replaced atomically.
      tensors: name, shape and dtype of each tensor.
      read: function that returns the array of a name.
      metadata: strings for the header.

    Raises:
      DataError: the format does not have a dtype, or an array does not match its entry.
    """
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, shape, dtype in tensors:
        dtype = np.dtype(dtype)
        if dtype not in NAMES:
            raise DataError(f"safetensors has no {dtype}, the dtype of {name}")
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(file) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape, dtype in tensors:
            array = np.asarray(read(name), order="C")
            if array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
                raise DataError(f"{name} is {array.dtype}{array.shape}, not {shape}")
            stream.write(array.reshape(-1).view(np.uint8).data)
