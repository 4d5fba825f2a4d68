"""A text file as sequences of bytes."""

import hashlib
from pathlib import Path

import numpy as np

from jaxspec.errors import DataError

# Share of the file, at its end, that is held out.
HELDOUT_SHARE = 0.1


class TextSource:
    """Windows of a text, one token a byte.

    Attributes:
      codes: uint8 [1, n, T]: the text cut into windows, one behind the other.
      labels: int32 [n], zeros.
      digest: of the text.
    """

    def __init__(self, path: str | Path, length: int, *, heldout: bool):
        """Reads the first part of a file, or the part that is held out.

        Raises:
          DataError: there is no such file, or it is too short.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"no text file at '{path}'; give its folder, --manual-dir")
        text = np.frombuffer(path.read_bytes(), np.uint8)
        cut = len(text) - int(HELDOUT_SHARE * len(text))
        self._text = text[cut:] if heldout else text[:cut]
        count = len(self._text) // length
        if count < 1:
            raise DataError(f"'{path}' is shorter than {length} bytes in this part")
        self.codes = self._text[: count * length].reshape(1, count, length)
        self.labels = np.zeros(count, np.int32)
        self.digest = hashlib.sha256(self._text.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    def take(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """As many windows int32 [k, T] from anywhere, and labels [k]."""
        length = self.codes.shape[2]
        starts = rng.integers(0, len(self._text) - length + 1, len(indices))
        rows = self._text[starts[:, None] + np.arange(length)]
        return rows.astype(np.int32), np.zeros(len(indices), np.int32)
