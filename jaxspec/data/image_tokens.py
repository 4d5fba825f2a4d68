"""Token sequences of images, encoded once and cached."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import params_digest
from jaxspec.data.source import ImageSource
from jaxspec.io.images import to_unit
from jaxspec.io.writing import whole_file
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.typing import Params


class Sequences(Protocol):
    """Training sequences: `TokenSource` or `TextSource`.

    Attributes:
      tokens: integer [M, n, T], `M` versions of `n` sequences, the original first.
      labels: int32 [n], conditions.
      digest: identity of the sequences.
    """

    tokens: np.ndarray
    labels: np.ndarray
    digest: str

    def __len__(self) -> int:
        """Number `n` of sequences."""
        ...

    def take(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, T] and labels int32 [B] of a training step."""
        ...


@dataclass
class TokenSource:
    """Tokens of the images of a split.

    Attributes:
      tokens: uint16 or int32 [M, n, T], of the original images and, if `M` is 2, of the
        mirrored ones.
      labels: int32 [n], classes.
      digest: digest of the tokenizer's parameters or, for self-generated sequences, of
        the target and its settings.
    """

    tokens: np.ndarray
    labels: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def sample_indices(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Indices [B] into `M n` sequences, which choose a random version of each.

        Args:
          indices: integer [B], sequences below `n`.
          rng: generator that samples the versions.
        """
        return (
            rng.integers(self.tokens.shape[0], size=len(indices)) * len(self) + indices
        )

    def at(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, T] and labels [B] at indices into `M n` sequences."""
        tokens = self.tokens.reshape(-1, self.tokens.shape[-1])[indices]
        return tokens.astype(np.int32), self.labels[indices % len(self)]

    def take(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, T], in a random version of each image, and labels [B]."""
        return self.at(self.sample_indices(indices, rng))


def encode_source(
    tokenizer: Tokenizer,
    params: Params,
    source: ImageSource,
    *,
    name: str,
    flips: bool,
    cache_dir: Path,
    batch: int = 64,
) -> TokenSource:
    """Encodes a split, or reads the tokens cached with the same tokenizer.

    Args:
      tokenizer: static functions of the tokenizer.
      params: parameters of the tokenizer.
      source: images of the split.
      name: data set and split, as the beginning of the cache's file name.
      flips: whether to encode mirrored images as well.
      cache_dir: folder of the cached tokens.
      batch: images per forward pass.
    """
    digest = params_digest(params)
    file = cache_dir / f"{name}-{'flips' if flips else 'plain'}-{digest}.npy"
    if file.exists():
        return TokenSource(np.load(file), source.labels, digest)
    encode = jax.jit(tokenizer.encode)
    length = tokenizer.config.grid**2
    kind = np.uint16 if tokenizer.config.codebook_size <= 1 << 16 else np.int32
    tokens = np.empty((1 + flips, len(source), length), kind)
    for start in tqdm(range(0, len(source), batch), desc=f"encoding {name}"):
        indices = np.arange(start, min(start + batch, len(source)))
        images = to_unit(source.take(indices))
        for mirrored in range(1 + flips):
            view = images[:, :, ::-1] if mirrored else images
            tokens[mirrored, indices] = np.asarray(encode(params, view))
    cache_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        np.save(stream, tokens)
    return TokenSource(tokens, source.labels, digest)
