"""Residual VQ tokenizer: several tokens a cell, coarse to fine (RQ-VAE)."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.errors import DataError
from jaxspec.nn.vq import nearest_codes
from jaxspec.tokenizers.networks import VQNetworks
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.typing import Array, Float, Int, Params


@dataclass(frozen=True)
class ResidualTokenizer(Tokenizer):
    """Pure functions of a residual VQ tokenizer; static and hashable.

    Tokens are cells in raster order, and of each cell all depths from the coarsest on.
    A token of depth `d` is one of the codes from `d V` on, `V` being the size of one
    codebook; tokens of another depth count modulo `V`.

    Source: arXiv 2203.01941.

    Attributes:
      config: sizes of the tokenizer.
    """

    config: ResidualTokenizerConfig

    @property
    def networks(self) -> VQNetworks:
        """Encoder and decoder."""
        return VQNetworks(self.config.networks)

    @property
    def cells(self) -> None:
        """None: cells are in raster order."""
        return None

    def quantize(
        self, codebook: Float[Array, "n C"], vectors: Float[Array, "... C"]
    ) -> Int[Array, "... d"]:
        """Codes, int32, of vectors as from `embed`, all depths of each."""
        return self.residuals(codebook, vectors)[0]

    def residuals(
        self, codebook: Float[Array, "n C"], vectors: Float[Array, "... C"]
    ) -> tuple[Int[Array, "... d"], Float[Array, "... d C"], Float[Array, "... d C"]]:
        """Codes of each depth, what they stand for, and their entries.

        Args:
          codebook: entries of all depths.
          vectors: vectors before quantization.

        Returns:
          Codes int32; the vectors that are quantized at each depth, each what the
          depths before left over; and codebook entries. Both float32.
        """
        rest, found = vectors.astype(jnp.float32), []
        for depth, book in enumerate(self.books(codebook)):
            codes = nearest_codes(book, rest, normalized=False)
            entries = book[codes]
            found.append((codes + depth * len(book), rest, entries))
            rest = rest - entries
        codes, rests, entries = zip(*found, strict=True)
        return jnp.stack(codes, -1), jnp.stack(rests, -2), jnp.stack(entries, -2)

    def books(self, codebook: Float[Array, "n C"]) -> Float[Array, "d V C"]:
        """Codebook of each depth, float32."""
        book = codebook.astype(jnp.float32)
        return book.reshape(self.config.depth, -1, book.shape[-1])

    def decode(
        self, params: Params, codes: Int[Array, "B T"]
    ) -> Float[Array, "B h w 3"]:
        """Maps codes to images, nominally in [-1, 1].

        Raises:
          DataError: the number of codes is not `grid ** 2 * depth`.
        """
        c = self.config
        if codes.ndim != 2 or codes.shape[1] != c.length:
            raise DataError(
                f"codes have shape {tuple(codes.shape)}; this tokenizer takes "
                f"[B, {c.length}] ({c.grid} x {c.grid} in raster order, {c.depth} each)"
            )
        vectors = self._entries(params, codes).sum(axis=-2)
        return self.decode_vectors(params, vectors)

    def _entries(
        self, params: Params, codes: Int[Array, "B T"]
    ) -> Float[Array, "B grid grid d C"]:
        c = self.config
        codes = codes.reshape(-1, c.grid, c.grid, c.depth) % c.networks.codebook_size
        first = jnp.arange(c.depth, dtype=jnp.int32) * c.networks.codebook_size
        book = params["codebook"].astype(jnp.float32)
        return book[codes + first.reshape(1, 1, 1, -1)]

    def decode_partial(
        self, params: Params, tokens: Int[Array, "B T"]
    ) -> Float[Array, "B h w 3"]:
        """Decodes images of which only some tokens exist.

        Args:
          params: parameters.
          tokens: tokens, -1 for those that do not exist yet.

        Returns:
          Images in [-1, 1] of the depths that exist in each cell; gray (0) in cells
          without the first.
        """
        c = self.config
        known = (tokens >= 0).reshape(-1, c.grid, c.grid, c.depth)
        known = jnp.cumprod(known.astype(jnp.int32), axis=-1) > 0
        entries = self._entries(params, jnp.maximum(tokens, 0))
        vectors = jnp.where(known[..., None], entries, 0.0).sum(axis=-2)
        images = self.decode_vectors(params, vectors)
        cell = images.shape[1] // c.grid
        mask = known[..., 0].repeat(cell, axis=1).repeat(cell, axis=2)
        return jnp.where(mask[..., None], images, 0.0)
