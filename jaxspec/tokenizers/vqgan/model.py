"""VQ image tokenizer, which maps images to codes and back (LlamaGen VQ-16 and VQ-8)."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import TokenizerConfig
from jaxspec.config.orders import Order, cells_of
from jaxspec.errors import DataError
from jaxspec.nn.scalar import (
    bit_codes,
    fsq_bounded,
    fsq_values,
    product_codebook,
    product_codes,
    sign_codes,
)
from jaxspec.nn.vq import look_up, nearest_codes
from jaxspec.tokenizers.checks import check_images
from jaxspec.tokenizers.networks import VQNetworks
from jaxspec.typing import Array, Bool, Float, Int, Params

PRESETS = {
    "vq-16": TokenizerConfig(),
    "vq-8": TokenizerConfig(multipliers=(1, 2, 2, 4)),
    # 64x64 images to 16x16 codes, with all convolutions at the resolution of the codes.
    "small-64": TokenizerConfig(
        image_size=64,
        patch_size=4,
        channels=96,
        multipliers=(1,),
        attention="middle",
        groups=8,
        latent_channels=96,
        codebook_size=1024,
    ),
    # 32x32 images to 16x16 codes.
    "small-32": TokenizerConfig(
        image_size=32,
        patch_size=2,
        channels=96,
        multipliers=(1,),
        attention="middle",
        groups=8,
        latent_channels=96,
        codebook_size=1024,
    ),
}


@dataclass(frozen=True)
class Tokenizer:
    """Pure functions of a VQ tokenizer; static and hashable.

    Source: LlamaGen (arXiv 2406.06525), which l2-normalizes codebook entries both to
    choose codes and to decode them. Related tokenizers differ in their configuration.

    Attributes:
      config: sizes and kind of the tokenizer.
    """

    config: TokenizerConfig

    @property
    def networks(self) -> nn.Module:
        """Encoder and decoder."""
        return VQNetworks(self.config)

    def init(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        c = self.config
        networks_key, codebook_key = jax.random.split(key)
        image = jnp.zeros((1, c.image_size, c.image_size, 3))
        networks = self.networks.init(networks_key, image)["params"]
        shape = (c.codebook_size, c.code_dim)
        book = jax.random.normal(codebook_key, shape, jnp.float32)
        return {**networks, "codebook": self._fixed_codebook(book)}

    def _fixed_codebook(self, book: Array) -> Array:
        """Codebook of FSQ, LFQ or bits; `book` where it is learned."""
        c = self.config
        if c.quantizer == "vq":
            return book
        if c.quantizer == "fsq":
            return jnp.asarray(product_codebook(fsq_values(c.levels)))
        values = (-1.0, 1.0) if c.quantizer == "lfq" else (0.0, 1.0)
        return jnp.asarray(product_codebook((values,) * c.code_dim))

    def _bound(self, params: Params) -> Any:
        return self.networks.bind({"params": params})

    def embed(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Float[Array, "B grid grid C"]:
        """Maps images in [-1, 1] to continuous vectors, before quantization.

        Those of FSQ are bounded already, and those of bits are probabilities.

        Raises:
          DataError: the images have the wrong size.
        """
        c = self.config
        check_images(images, c.image_size)
        vectors = self._bound(params).encode(images)
        if c.quantizer == "fsq":
            return fsq_bounded(vectors, c.levels)
        if c.quantizer == "bits":  # in float32, where probabilities near 1 differ
            return jax.nn.sigmoid(vectors.astype(jnp.float32))
        return vectors

    def encode(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Int[Array, "B T"]:
        """Maps images in [-1, 1] to codes, int32, in the order of the configuration.

        `T = grid ** 2`.

        Raises:
          DataError: the images have the wrong size.
        """
        codes = self.quantize(params["codebook"], self.embed(params, images))
        codes = codes.reshape(images.shape[0], -1)
        return codes if self.cells is None else codes[:, self.cells]

    @property
    def cells(self) -> Int[np.ndarray, "T"] | None:
        """Cell of each token, int; None if that is its index."""
        order, grid = self.config.order, self.config.grid
        return None if order == "raster" else np.array(cells_of(order, grid))

    def on_grid(self, tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """Tokens in the order of the cells of the grid, int32."""
        return tokens if self.cells is None else tokens[:, np.argsort(self.cells)]

    def quantize(
        self, codebook: Float[Array, "V C"], vectors: Float[Array, "... C"]
    ) -> Int[Array, "..."]:
        """Codes, int32, of vectors as from `embed`."""
        c = self.config
        if c.quantizer == "fsq":
            return product_codes(vectors, c.levels)
        if c.quantizer == "lfq":
            return sign_codes(vectors)
        if c.quantizer == "bits":
            return bit_codes(vectors > 0.5)
        return nearest_codes(codebook, vectors, normalized=c.normalized == "both")

    def decode_vectors(
        self, params: Params, vectors: Float[Array, "B grid grid C"]
    ) -> Float[Array, "B h w 3"]:
        """Maps codebook entries on the grid to images, nominally in [-1, 1]."""
        return self._bound(params).decode(vectors)

    def decode(
        self, params: Params, codes: Int[Array, "B T"]
    ) -> Float[Array, "B h w 3"]:
        """Maps codes in the order of the configuration to images.

        Images are nominally in [-1, 1].

        Raises:
          DataError: there are not `grid ** 2` codes per image.
        """
        grid = self.config.grid
        if codes.ndim != 2 or codes.shape[1] != grid * grid:
            raise DataError(
                f"codes have shape {tuple(codes.shape)}; this tokenizer takes "
                f"[B, {grid * grid}] ({grid} x {grid})"
            )
        vectors = look_up(
            params["codebook"],
            self.on_grid(codes),
            normalized=self.config.normalized != "none",
        )
        return self.decode_vectors(
            params, vectors.reshape(-1, grid, grid, vectors.shape[-1])
        )

    def decode_partial(
        self, params: Params, tokens: Int[Array, "B T"]
    ) -> Float[Array, "B h w 3"]:
        """Decodes images of which only some tokens exist.

        Args:
          params: parameters.
          tokens: tokens in the order of the configuration, -1 for those that do not
            exist yet.

        Returns:
          Images in [-1, 1]. In raster order, grid cells without a token are gray (0).
          In other orders, which spread tokens over the grid, they repeat the nearest
          known one, so that the image is a preview of the whole. Pixels near the
          border of the known cells change once their neighbors exist.
        """
        known = tokens >= 0
        if self.cells is not None:
            return self._preview(params, tokens, known)
        # Missing cells repeat the newest token, which disturbs their neighbors least.
        last = jnp.maximum(jnp.sum(known, axis=1, keepdims=True) - 1, 0)
        newest = jnp.take_along_axis(tokens, last, axis=1)
        images = self.decode(params, jnp.maximum(jnp.where(known, tokens, newest), 0))
        grid = self.config.grid
        cell = images.shape[1] // grid
        mask = known.reshape(-1, grid, grid).repeat(cell, axis=1).repeat(cell, axis=2)
        return jnp.where(mask[..., None], images, 0.0)

    def _preview(
        self, params: Params, tokens: Int[Array, "B T"], known: Bool[Array, "B T"]
    ) -> Float[Array, "B h w 3"]:
        """Images whose missing cells repeat the nearest known one; gray without any."""
        distance = jnp.asarray(_distances(self.config.order, self.config.grid))
        away = jnp.where(known[:, None, :], distance, jnp.inf)
        nearest = jnp.argmin(away, axis=-1)
        filled = jnp.take_along_axis(jnp.maximum(tokens, 0), nearest, axis=1)
        images = self.decode(params, filled)
        return jnp.where(known.any(axis=1)[:, None, None, None], images, 0.0)


@cache
def _distances(order: Order, grid: int) -> Float[np.ndarray, "T T"]:
    """Distances between the cells of tokens in an order."""
    rows, columns = np.divmod(np.array(cells_of(order, grid)), grid)
    across, down = (np.subtract.outer(x, x) for x in (columns, rows))
    return np.hypot(across, down).astype(np.float32)
