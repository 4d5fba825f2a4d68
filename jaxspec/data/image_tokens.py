"""Token sequences of images, encoded once and cached."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import params_digest
from jaxspec.config.orders import order_of
from jaxspec.data.source import ImageSource
from jaxspec.io.images import to_unit
from jaxspec.io.writing import whole_file
from jaxspec.tokenizers.kl.model import KLTokenizer
from jaxspec.tokenizers.multi_scale.model import MultiScaleTokenizer
from jaxspec.tokenizers.one_d.model import OneDTokenizer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.typing import Params, PyTree


class Sequences(Protocol):
    """Training sequences: `TokenSource` or `TextSource`.

    Attributes:
      tokens: integer [M, n, T], `M` versions of `n` sequences, the original first.
      digest: identity of the sequences.
    """

    @property
    def tokens(self) -> np.ndarray:
        """Integer [M, n, T], see above."""
        ...

    @property
    def digest(self) -> str:
        """Identity, see above."""
        ...

    def __len__(self) -> int:
        """Number `n` of sequences."""
        ...

    def prompts(self, indices: np.ndarray) -> PyTree:
        """Prompts of the sequences at `indices` [B], as the model takes them."""
        ...

    def take(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, PyTree]:
        """Tokens int32 [B, T] and prompts of a training step."""
        ...


@dataclass(frozen=True)
class TokenSource:
    """Tokens of the images of a split.

    Attributes:
      tokens: uint16 or int32 [M, n, T], of the original images and, if `M` is 2, of the
        mirrored ones; float16 [M, n, T, 2 C] of continuous tokens, means and standard
        deviations.
      labels: int32 [n], classes.
      digest: digest of the tokenizer's parameters or, for self-generated sequences, of
        the target and its settings.
      captions: int32 [n, P], text tokens of each image's caption, with -1 after shorter
        ones; None for classes.
      encode: text encoder from captions int32 [B, P] to prompts; None to give the
        captions themselves.
    """

    tokens: np.ndarray
    labels: np.ndarray
    digest: str
    captions: np.ndarray | None = None
    encode: Callable[[np.ndarray], PyTree] | None = None

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

    def repeated(self, tokens: np.ndarray, digest: str) -> "TokenSource":
        """Other sequences [M, n, T], with these conditions, repeated."""
        indices = np.arange(tokens.shape[1]) % len(self)
        captions = None if self.captions is None else self.captions[indices]
        labels = self.labels[indices]
        return TokenSource(tokens, labels, digest, captions, self.encode)

    def prompts(self, indices: np.ndarray) -> PyTree:
        """Labels int32 [B], captions int32 [B, P], or what `encode` makes of those."""
        if self.captions is None:
            return self.labels[indices]
        captions = self.captions[indices]
        return captions if self.encode is None else self.encode(captions)

    def at(self, indices: np.ndarray) -> tuple[np.ndarray, PyTree]:
        """Tokens int32 [B, T] and prompts at indices into `M n` sequences.

        Continuous tokens are float32 [B, T, 2 C].
        """
        tokens = self.tokens.reshape(-1, *self.tokens.shape[2:])[indices]
        kind = np.float32 if tokens.dtype.kind == "f" else np.int32
        return tokens.astype(kind), self.prompts(indices % len(self))

    def take(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, PyTree]:
        """Tokens int32 [B, T], in a random version of each image, and prompts."""
        return self.at(self.sample_indices(indices, rng))


def encode_source(
    tokenizer: Tokenizer | MultiScaleTokenizer | KLTokenizer | OneDTokenizer,
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
    # Tokens depend on these settings, too.
    if isinstance(tokenizer, KLTokenizer):
        digest += f"-{tokenizer.config.scale:.9g}"
    if isinstance(tokenizer, OneDTokenizer):
        flags = tokenizer.config.mixed_order, tokenizer.config.normalized
        digest += "".join("-" + str(int(flag)) for flag in flags)
    order = order_of(tokenizer.config)
    digest += f"-{order}" if order != "raster" else ""
    stem = f"{name.replace('/', '-')}-{'flips' if flips else 'plain'}-{digest}"
    file = cache_dir / f"{stem}.npy"
    if file.exists():
        cached = np.load(file)
        if cached.shape[1] == len(source):
            return TokenSource(cached, source.labels, digest)
    shape, kind = (tokenizer.config.length,), np.int32
    if isinstance(tokenizer, KLTokenizer):
        shape, kind = (*shape, 2 * tokenizer.config.channels), np.float16
        encode = jax.jit(
            lambda *args: jnp.concatenate(tokenizer.posterior(*args), axis=-1)
        )
    else:
        encode = jax.jit(tokenizer.encode)
        if tokenizer.config.codebook_size <= 1 << 16:
            kind = np.uint16
    tokens = np.empty((1 + flips, len(source), *shape), kind)
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
