"""Writer of GGUF files for tests."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

CODES = {np.dtype("<f4"): 0, np.dtype("<f2"): 1}


def text(value: str) -> bytes:
    """A text with its length."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(x: Any) -> bytes:
    """A value of metadata with its kind."""
    if isinstance(x, bool):
        return struct.pack("<I?", 7, x)
    if isinstance(x, str):
        return struct.pack("<I", 8) + text(x)
    if isinstance(x, int):
        return struct.pack("<II", 4, x)
    if isinstance(x, float):
        return struct.pack("<If", 6, x)
    items = [value(item) for item in x]
    kind = items[0][:4] if items else struct.pack("<I", 4)
    body = b"".join(item[4:] for item in items)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + body


def write(
    file: Path,
    metadata: dict[str, Any],
    tensors: dict[str, Any],
    *,
    version: int = 3,
) -> None:
    """Writes arrays, or triples of shape, code and bytes of an encoding."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    header += b"".join(text(key) + value(x) for key, x in metadata.items())
    body = b""
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            shape, code, data = tensor.shape, CODES[tensor.dtype], tensor.tobytes()
        else:
            shape, code, data = tensor
        header += text(name) + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *shape[::-1])
        header += struct.pack("<IQ", code, len(body))
        body += data + b"\0" * (-len(data) % 32)
    header += b"\0" * (-len(header) % 32)
    file.write_bytes(header + body)
