"""Header of a GGUF file: metadata, and names, shapes and positions of its tensors.

Source: the format's specification, docs/gguf.md of ggml, versions 2 and 3.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jaxspec.convert.reading.formats import GGUF
from jaxspec.convert.reading.gguf.blocks import KINDS, BlockKind
from jaxspec.convert.reading.source import printable
from jaxspec.errors import DataError

VERSIONS = (2, 3)
# Formats of numbers by their code in the file; 8 is a string and 9 an array.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f"}
NUMBERS |= {7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
MAX_AXES, MAX_ENTRIES = 4, 1 << 24


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file, which has not been read.

    Attributes:
      shape: shape with the fastest axis last, as in NumPy.
      kind: encoding of its numbers.
      offset: position of its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: BlockKind
    offset: int

    @property
    def bytes(self) -> int:
        """Number of bytes in the file."""
        return math.prod(self.shape) // self.kind.numbers * self.kind.bytes


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Reads the metadata and lists the tensors by name.

    Raises:
      DataError: the file is damaged, truncated, of another version, or has an encoding
        that is not read.
      OSError: the file cannot be read.
    """
    total = file.stat().st_size
    with open(file, "rb") as stream:
        reader = _Reader(file, stream, total)
        if stream.read(4) != GGUF:
            raise damaged(file, "it does not begin with GGUF")
        version = reader.number("I")
        if version not in VERSIONS:
            raise DataError(
                f"'{file}' has version {version} of GGUF, or another byte order; "
                "versions 2 and 3 are read"
            )
        tensor_count, entry_count = reader.count(), reader.count()
        metadata = {}
        for _ in range(entry_count):
            key = reader.string()
            metadata[key] = reader.value(reader.number("I"))
        entries = [_tensor_entry(reader) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise damaged(file, f"its alignment is {printable(str(alignment))}")
        start = -(-stream.seek(0, 1) // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, code, offset in entries:
        if name in tensors:
            raise damaged(file, f"the tensor {name} occurs twice")
        tensors[name] = _tensor(file, total, name, shape, code, start + offset)
    return metadata, tensors


def damaged(file: Path, reason: str) -> DataError:
    """Error of a file that cannot be what it was."""
    return DataError(f"'{file}' is damaged or no GGUF file ({reason}); fetch it again")


def _tensor_entry(reader: "_Reader") -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, code of the encoding, and offset behind the header."""
    name = printable(reader.string())
    axes = reader.number("I")
    if axes > MAX_AXES:
        raise damaged(reader.file, f"{name} has {axes} axes")
    shape = tuple(reader.number("Q") for _ in range(axes))
    return name, shape[::-1], reader.number("I"), reader.number("Q")


def _tensor(
    file: Path, total: int, name: str, shape: tuple[int, ...], code: int, offset: int
) -> GgufTensor:
    """A tensor whose size and position fit the file."""
    if code not in KINDS:
        known = ", ".join(kind.name for kind in KINDS.values())
        raise DataError(
            f"'{file}': {name} has encoding {code}, which is not read; read are {known}"
        )
    tensor = GgufTensor(shape, KINDS[code], offset)
    if not shape or min(shape) < 1 or shape[-1] % tensor.kind.numbers:
        raise damaged(file, f"{name} has the shape {shape}")
    if offset + tensor.bytes > total:
        raise damaged(
            file, f"{name} ends at byte {offset + tensor.bytes}, the file at {total}"
        )
    return tensor


@dataclass(frozen=True)
class _Reader:
    """Values of a header, in little-endian byte order."""

    file: Path
    stream: BinaryIO
    total: int

    def take(self, size: int) -> bytes:
        """Next bytes of the file."""
        if size > self.total:
            raise damaged(self.file, f"a text of {size} bytes")
        data = self.stream.read(size)
        if len(data) < size:
            raise damaged(self.file, "it ends within its header")
        return data

    def number(self, form: str) -> Any:
        """Next number."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def count(self) -> int:
        """Next number of entries."""
        count = self.number("Q")
        if count > MAX_ENTRIES:
            raise damaged(self.file, f"{count} entries")
        return count

    def string(self) -> str:
        """Next text."""
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, code: int, nested: bool = False) -> Any:
        """Next value of metadata."""
        if code == STRING:
            return self.string()
        if code == ARRAY and not nested:
            kind, count = self.number("I"), self.count()
            if kind in NUMBERS:
                form = f"<{count}{NUMBERS[kind]}"
                return list(struct.unpack(form, self.take(struct.calcsize(form))))
            return [self.value(kind, nested=True) for _ in range(count)]
        if code in NUMBERS:
            return self.number(NUMBERS[code])
        raise damaged(self.file, f"a value of kind {code}")
