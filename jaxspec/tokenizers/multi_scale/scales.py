"""Residual quantization over scales: token maps, and the features they add up to."""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.precision import full_precision
from jaxspec.nn.resize import area_matrix, bicubic_matrix, resize
from jaxspec.nn.vq import look_up, nearest_codes
from jaxspec.typing import Array, Float, Int, Params

# Parameters of a tokenizer that `Scales` reads.
QUANTIZER = ("codebook", "residual_convs")


def shared_convs(scales: int, convs: int) -> tuple[int, ...]:
    """Convolution of each scale: evenly spread points take the nearest of the scales.

    Args:
      scales: number of scales.
      convs: number of convolutions.
    """
    # As published: four convolutions stand at other places than other numbers do.
    edge = 1 / 3 / convs if convs == 4 else 1 / 2 / convs
    places = np.linspace(edge, 1 - edge, convs)
    at = np.arange(scales) / max(scales - 1, 1)
    return tuple(int(np.argmin(np.abs(places - x))) for x in at)


@dataclass(frozen=True)
class Scales:
    """Pure functions between token maps and features; static and hashable.

    Parameters are the "codebook" and the "residual_convs" of a tokenizer. Features are
    float32 [B, grid, grid, C]: the sum of what the maps of all scales add. Source: VAR
    (arXiv 2404.02905).

    Attributes:
      sides: sides of the token maps; the last is the grid.
      convs: convolution of each scale, see `shared_convs`.
      share: share of the convolution's output in what a map adds.
    """

    sides: tuple[int, ...]
    convs: tuple[int, ...]
    share: float

    def __len__(self) -> int:
        return len(self.sides)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Number of tokens up to each scale, its own included."""
        return tuple(int(x) for x in np.cumsum([s * s for s in self.sides]))

    @property
    def grid(self) -> int:
        """Side of the features."""
        return self.sides[-1]

    def tokens_of(self, scale: int) -> slice:
        """Tokens of one scale within those of an image."""
        return slice(self.ends[scale] - self.sides[scale] ** 2, self.ends[scale])

    def init(self, key: Array, size: int, width: int) -> Params:
        """Random float32 parameters of `size` codes of `width`; consumes `key`."""
        book_key, conv_key = jax.random.split(key)
        bound = 1 / np.sqrt(9 * width)
        convs = {
            str(i): {
                "kernel": jax.random.uniform(
                    jax.random.fold_in(conv_key, i),
                    (3, 3, width, width),
                    jnp.float32,
                    -bound,
                    bound,
                ),
                "bias": jnp.zeros(width, jnp.float32),
            }
            for i in range(max(self.convs) + 1)
        }
        book = jax.random.normal(book_key, (size, width), jnp.float32)
        return {"codebook": book, "residual_convs": convs}

    def quantize(
        self, params: Params, features: Float[Array, "B grid grid C"]
    ) -> Int[Array, "B T"]:
        """Tokens of all scales, coarse to fine, int32; each encodes what is left."""
        rest, tokens = features.astype(jnp.float32), []
        for scale in range(len(self)):
            codes = nearest_codes(
                params["codebook"], self.reduced(rest, scale), normalized=False
            )
            tokens.append(codes)
            rest = rest - self.added(params, codes, scale)
        return jnp.concatenate(tokens, axis=1)

    def reduced(
        self, features: Float[Array, "B grid grid C"], scale: int
    ) -> Float[Array, "B T C"]:
        """Features averaged to the map of a scale, in raster order."""
        side = self.sides[scale]
        if side != self.grid:
            features = resize(features, area_matrix(self.grid, side))
        return features.reshape(len(features), side * side, -1)

    def added(
        self, params: Params, codes: Int[Array, "B T"], scale: int
    ) -> Float[Array, "B grid grid C"]:
        """Features that the tokens of one scale add to those of earlier ones."""
        vectors = look_up(params["codebook"], codes, normalized=False)
        return self.spread(params, vectors, scale)

    @full_precision
    def spread(
        self, params: Params, vectors: Float[Array, "B T C"], scale: int
    ) -> Float[Array, "B grid grid C"]:
        """Features that codebook entries of one scale, or mixtures of them, add."""
        side = self.sides[scale]
        x = vectors.reshape(len(vectors), side, side, -1)
        if side != self.grid:
            x = resize(x, bicubic_matrix(side, self.grid))
        conv = params["residual_convs"][str(self.convs[scale])]
        y = jax.lax.conv_general_dilated(
            x,
            conv["kernel"].astype(jnp.float32),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y + conv["bias"].astype(jnp.float32).reshape(1, 1, 1, -1)
        return (1 - self.share) * x + self.share * y

    def features(
        self, params: Params, tokens: Int[Array, "B T"], count: int | None = None
    ) -> Float[Array, "B grid grid C"]:
        """Features of the first `count` scales; None for all."""
        parts = [
            self.added(params, tokens[:, self.tokens_of(scale)], scale)
            for scale in range(len(self) if count is None else count)
        ]
        return sum(parts[1:], start=parts[0])

    def own(
        self, params: Params, codes: Int[Array, "B T"], scale: int
    ) -> Float[Array, "B T C"]:
        """Features that a map adds, reduced to it; for masked refinement (HMAR)."""
        return self.reduced(self.added(params, codes, scale), scale)

    def inputs(
        self, params: Params, tokens: Int[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        """Inputs of a next-scale model that reads all tokens but those of the last map.

        The input of a scale is the reduced sum of what all scales before it add; that
        of the first scale is 0.
        """
        width = params["codebook"].shape[1]
        batch, grid = len(tokens), self.grid
        total = jnp.zeros((batch, grid, grid, width), jnp.float32)
        parts = [jnp.zeros((batch, 1, width), jnp.float32)]
        for scale in range(len(self) - 1):
            codes = tokens[:, self.tokens_of(scale)]
            total = total + self.added(params, codes, scale)
            parts.append(self.reduced(total, scale + 1))
        return jnp.concatenate(parts, axis=1)
