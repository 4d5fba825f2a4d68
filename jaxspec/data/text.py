"""Texts as windows of one stream of tokens."""

import hashlib
from pathlib import Path

import numpy as np

from jaxspec.errors import DataError

# Share of a file, at its end, that is held out.
HELDOUT_SHARE = 0.1


class TextSource:
    """Windows of a stream of tokens.

    Attributes:
      tokens: unsigned integers [1, n, T], consecutive windows that do not overlap.
      labels: int32 [n], zeros.
      digest: digest of the stream.
    """

    def __init__(self, stream: np.ndarray, length: int):
        """Divides a stream.

        Args:
          stream: tokens, unsigned integers [m], at least `length`.
          length: tokens of a window, `T`.
        """
        self._stream = stream
        count = len(stream) // length
        self.tokens = stream[: count * length].reshape(1, count, length)
        self.labels = np.zeros(count, np.int32)
        self.digest = hashlib.sha256(stream.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    def prompts(self, indices: np.ndarray) -> np.ndarray:
        """Zeros int32 [B]: text has no condition."""
        return self.labels[indices]

    def take(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Random windows int32 [B, T], as many as `indices`, and labels [B]."""
        length = self.tokens.shape[2]
        starts = rng.integers(0, len(self._stream) - length + 1, len(indices))
        windows = self._stream[starts[:, None] + np.arange(length)]
        return windows.astype(np.int32), np.zeros(len(indices), np.int32)


def byte_windows(path: str | Path, length: int, *, heldout: bool) -> TextSource:
    """Reads one part of a text file, with one token per byte.

    Args:
      path: text file.
      length: bytes of a window.
      heldout: True for the end of the file, False for the part before it.

    Raises:
      DataError: the file is missing or shorter than a window.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no text file at '{path}'; set --manual-dir to its folder")
    text = np.frombuffer(path.read_bytes(), np.uint8)
    cut = len(text) - int(HELDOUT_SHARE * len(text))
    part = text[cut:] if heldout else text[:cut]
    if len(part) < length:
        raise DataError(f"'{path}' is shorter than {length} bytes in this part")
    return TextSource(part, length)
