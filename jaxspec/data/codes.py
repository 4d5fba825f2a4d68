"""Images as codes, computed once and kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import params_digest
from jaxspec.data.source import ImageSource
from jaxspec.images import to_unit
from jaxspec.models.tokenizer import Tokenizer
from jaxspec.typing import Params
from jaxspec.writing import whole_file


class Sequences(Protocol):
    """What trainers read: `CodeSource`, or text."""

    codes: np.ndarray
    labels: np.ndarray
    digest: str

    def __len__(self) -> int:
        """How many."""
        ...

    def take(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [k, T] and labels int32 [k] of a training step."""
        ...


@dataclass
class CodeSource:
    """Codes of a split.

    Attributes:
      codes: uint16 or int32 [M, n, T]: as they are, and mirrored when `M` is 2.
      labels: int32 [n].
      digest: of the tokenizer that made them.
    """

    codes: np.ndarray
    labels: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of all codes `[M n, T]`: images mirrored at random where possible."""
        return (
            rng.integers(self.codes.shape[0], size=len(indices)) * len(self) + indices
        )

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes int32 [k, T] of rows, and labels [k]."""
        codes = self.codes.reshape(-1, self.codes.shape[-1])[rows]
        return codes.astype(np.int32), self.labels[rows % len(self)]

    def take(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes int32 [k, T] (mirrored at random where possible) and labels [k]."""
        return self.at(self.rows(indices, rng))


def encode_source(
    tokenizer: Tokenizer,
    params: Params,
    source: ImageSource,
    *,
    name: str,
    flips: bool,
    cache_dir: Path,
    batch: int = 64,
) -> CodeSource:
    """Encodes a split, or reads what an earlier run with the same tokenizer kept.

    Args:
      tokenizer: static functions.
      params: its parameters.
      source: images.
      name: of data set and split, on disk.
      flips: also encode mirrored images.
      cache_dir: where codes are kept.
      batch: images side by side.
    """
    digest = params_digest(params)
    file = cache_dir / f"{name}-{'flips' if flips else 'plain'}-{digest}.npy"
    if file.exists():
        return CodeSource(np.load(file), source.labels, digest)
    encode = jax.jit(tokenizer.encode)
    length = tokenizer.config.grid**2
    kind = np.uint16 if tokenizer.config.codebook_size <= 1 << 16 else np.int32
    codes = np.empty((1 + flips, len(source), length), kind)
    for start in tqdm(range(0, len(source), batch), desc=f"encoding {name}"):
        rows = np.arange(start, min(start + batch, len(source)))
        images = to_unit(source.take(rows))
        for mirrored in range(1 + flips):
            view = images[:, :, ::-1] if mirrored else images
            codes[mirrored, rows] = np.asarray(encode(params, view))
    cache_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        np.save(stream, codes)
    return CodeSource(codes, source.labels, digest)
