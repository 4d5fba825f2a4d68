"""Tokenizer whose decoder is a flow from noise to an image (FlexTok, D-AR)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.core.noise import seed_key
from jaxspec.errors import DataError
from jaxspec.nn.scalar import fsq_bounded, fsq_values, product_codebook, product_codes
from jaxspec.nn.vq import look_up
from jaxspec.tokenizers.checks import check_images
from jaxspec.tokenizers.flow.guidance import projected_guidance
from jaxspec.tokenizers.flow.networks import FlowNetworks
from jaxspec.tokenizers.kl.model import KLTokenizer
from jaxspec.typing import Array, Bool, Float, Int, Params


@dataclass(frozen=True)
class FlowTokenizer:
    """Pure functions of a tokenizer with a flow; static and hashable.

    Sources: FlexTok (arXiv 2502.13967), any first tokens of which are an image; D-AR
    (arXiv 2505.23660), whose groups of tokens condition one part of the flow after the
    other, so that a prediction of the image after each group is a preview. Images are
    those of one noise unless a key is given.

    Attributes:
      config: sizes of the networks, and the flow.
    """

    config: FlowTokenizerConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters, of a flow of zeros; consumes `key`."""
        c = self.config
        key, latents_key = jax.random.split(key)
        grid = jnp.zeros((1, c.side, c.side, c.channels))
        book = jnp.asarray(product_codebook(fsq_values(c.levels)))
        params = {**FlowNetworks(c).init(key, grid)["params"], "codebook": book}
        if c.latents is None:
            return params
        return {**params, "latents": KLTokenizer(c.latents).init(latents_key)}

    def _bound(self, params: Params) -> Any:
        return FlowNetworks(self.config).bind({"params": params})

    def grid_of(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Float[Array, "B r r C"]:
        """Pixels in [-1, 1] or their latents, which the networks see."""
        c = self.config
        check_images(images, c.image_size)
        if c.latents is None:
            return images
        tokens = KLTokenizer(c.latents).encode(params["latents"], images)
        return tokens.reshape(len(images), c.side, c.side, c.channels)

    def embed(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Float[Array, "B T C"]:
        """Maps images in [-1, 1] to bounded vectors, before they are rounded.

        Raises:
          DataError: the images have the wrong size.
        """
        vectors = self._bound(params).encode(self.grid_of(params, images))
        return fsq_bounded(vectors, self.config.levels)

    def encode(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Int[Array, "B T"]:
        """Maps images in [-1, 1] to codes, int32.

        Raises:
          DataError: the images have the wrong size.
        """
        return product_codes(self.embed(params, images), self.config.levels)

    def velocity(
        self,
        params: Params,
        grid: Float[Array, "B r r C"],
        time: Float[Array, "B"],
        vectors: Float[Array, "B T E"],
        seen: Bool[Array, "B T"],
        null: Bool[Array, "B"],
    ) -> Float[Array, "B r r C"]:
        """Predicted noise minus image, float32, see `FlowNetworks.velocity`."""
        return self._bound(params).velocity(grid, time, vectors, seen, null)

    def read_at(self, time: Float[Array, "B"]) -> Int[Array, "B"]:
        """Number of tokens that the flow has read at times from 1 to 0."""
        c = self.config
        # A hundred-thousandth more, as 1 - .8 is less than .2 in floating point.
        made = jnp.floor((1 - time + 1e-5) * c.groups).astype(jnp.int32)
        return jnp.minimum(made + 1, c.groups) * (c.length // c.groups)

    def decode(
        self, params: Params, codes: Int[Array, "B n"], key: Array | None = None
    ) -> Float[Array, "B h w 3"]:
        """Maps codes, or the first ones, to images, nominally in [-1, 1].

        Args:
          params: parameters.
          codes: codes; the last ones may be left out.
          key: key of the noise that the flow starts from; None for a fixed one.

        Raises:
          DataError: there are too few or too many codes.
        """
        c = self.config
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= c.length:
            raise DataError(
                f"codes have shape {tuple(codes.shape)}; this tokenizer takes "
                f"[B, 1 to {c.length}]"
            )
        missing = c.length - codes.shape[1]
        padded = jnp.pad(codes, ((0, 0), (0, missing)), constant_values=-1)
        return self.decode_partial(params, padded, key)

    def decode_partial(
        self, params: Params, tokens: Int[Array, "B T"], key: Array | None = None
    ) -> Float[Array, "B h w 3"]:
        """Decodes images of which only the first tokens exist.

        Args:
          params: parameters.
          tokens: tokens, -1 for those that do not exist yet.
          key: key of the noise that the flow starts from; None for a fixed one.

        Returns:
          Images in [-1, 1]; gray without any token.
        """
        known = tokens >= 0
        book = params["codebook"]
        vectors = look_up(book, jnp.maximum(tokens, 0), normalized=False)
        images = self.decode_vectors(params, vectors, known, key)
        some = jnp.any(known, axis=1).reshape(-1, 1, 1, 1)
        return jnp.where(some, images, 0.0)

    def decode_vectors(
        self,
        params: Params,
        vectors: Float[Array, "B T C"],
        seen: Bool[Array, "B T"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "B h w 3"]:
        """Follows the flow from noise to images, nominally in [-1, 1].

        With several groups the flow ends where a token is missing that the next part of
        it reads, and the image is what it predicts there.

        Args:
          params: parameters.
          vectors: codebook entries of the tokens.
          seen: tokens that are read; None for all.
          key: key of the noise; None for a fixed one.
        """
        c, rows = self.config, len(vectors)
        seen = jnp.ones(vectors.shape[:2], bool) if seen is None else seen
        key = seed_key(0) if key is None else key
        shape = c.side, c.side, c.channels
        noise = jax.random.normal(key, shape, jnp.float32)
        noise = jnp.broadcast_to(noise[None], (rows, *shape))
        count = jnp.sum(jnp.cumprod(seen.astype(jnp.int32), axis=1), axis=1)
        place = jnp.arange(c.length)[None]

        def step(i, carry):
            grid, image, average = carry
            time = jnp.full(rows, 1 - i / c.steps, jnp.float32)
            read = self.read_at(time)
            goes_on = (c.groups == 1) | (read <= count) | (i == 0)
            shown = seen & (place < read[:, None])
            speed, average = self._guided(params, grid, time, vectors, shown, average)
            goes_on = goes_on.reshape(-1, 1, 1, 1)
            image = jnp.where(goes_on, grid - time[0] * speed, image)
            return jnp.where(goes_on, grid - speed / c.steps, grid), image, average

        zeros = jnp.zeros_like(noise)
        _, grid, _ = jax.lax.fori_loop(0, c.steps, step, (noise, zeros, zeros))
        if c.latents is None:
            return grid
        tokens = grid.reshape(rows, -1, c.channels)
        return KLTokenizer(c.latents).decode(params["latents"], tokens)

    def _guided(self, params, grid, time, vectors, seen, average):
        """Velocity after guidance, and its running difference."""
        rows = len(grid)
        if self.config.guidance == 1:
            null = jnp.zeros(rows, bool)
            return self.velocity(params, grid, time, vectors, seen, null), average
        both = (jnp.concatenate([x] * 2) for x in (grid, time, vectors, seen))
        twice, times, tokens, read = both
        null = jnp.arange(2 * rows) >= rows
        out = self.velocity(params, twice, times, tokens, read, null)
        return projected_guidance(self.config, out[:rows], out[rows:], average)
