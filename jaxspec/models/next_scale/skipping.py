"""Tokens of late maps that most layers leave out."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.nn.resize import area_matrix, resize
from jaxspec.typing import Array, Float, Int


@dataclass(frozen=True)
class TokenSkipping:
    """Tokens of the last maps that layers leave out; static. Lossy.

    Before each half of a layer, the tokens are chosen whose hidden states are farthest
    from the mean of their map; they alone are computed, and attend to each other and to
    the chosen tokens of earlier maps. For the others stands what the same half added at
    the last complete map, averaged to the cells of this one. Source: FastVAR
    (arXiv 2503.23367).

    Attributes:
      shares: share of the tokens that are computed, of each of the last maps.
      first_layer: first layer that leaves tokens out; those before it read all.

    Raises:
      ConfigError: a share is not above 0 and at most 1, or `first_layer` is negative.
    """

    shares: tuple[float, ...]
    first_layer: int = 3

    def __post_init__(self):
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ConfigError(
                f"shares={self.shares}; name one above 0 and at most 1 for each of the "
                "last maps"
            )
        if self.first_layer < 0:
            raise ConfigError(f"first_layer={self.first_layer}; choose 0 or more")

    def check(self, sides: tuple[int, ...]) -> None:
        """Checks that a complete map of several tokens is before the first other one.

        Args:
          sides: sides of the token maps.

        Raises:
          ConfigError: there is none.
        """
        if len(self.shares) > len(sides) - 2:
            raise ConfigError(
                f"{len(self.shares)} maps with tokens left out of {len(sides)}; choose "
                f"at most {len(sides) - 2}"
            )

    def complete(self, sides: tuple[int, ...]) -> int:
        """Scale of the last complete map."""
        return len(sides) - len(self.shares) - 1

    def count(self, sides: tuple[int, ...], scale: int, layer: int) -> int:
        """Number of tokens of a map that a layer computes."""
        late, tokens = scale - self.complete(sides) - 1, sides[scale] ** 2
        if late < 0 or layer < self.first_layer:
            return tokens
        return math.ceil(tokens * self.shares[late] - 1e-6)

    def mask(self, sides: tuple[int, ...], scale: int, layer: int) -> Array | None:
        """Slots, bool [1, S], of the cache that a map attends to; None for all.

        The computed tokens of a map have its first slots.
        """
        slots = []
        for earlier in range(scale + 1):
            count = self.count(sides, earlier, layer)
            room = count if earlier == scale else sides[earlier] ** 2
            slots.append(np.arange(room) < count)
        mask = np.concatenate(slots)
        return None if mask.all() else jnp.asarray(mask[None])


def pivotal(x: Float[Array, "R T D"], count: int) -> Int[Array, "R n"]:
    """Places, int32, of the `count` tokens that are farthest from the map's mean."""
    h = x.astype(jnp.float32)
    h = h - jnp.mean(h, axis=1, keepdims=True)
    return jax.lax.top_k(jnp.sum(h * h, axis=-1), count)[1]


def chosen(x: Float[Array, "R T D"], places: Int[Array, "R n"]) -> Array:
    """The tokens at some places, [R, n, D]."""
    return jnp.take_along_axis(x, places[..., None], axis=1)


def restored(
    outputs: Float[Array, "R n D"],
    places: Int[Array, "R n"],
    earlier: Float[Array, "R S D"],
    count: int,
) -> Float[Array, "R T D"]:
    """Outputs of a whole map: at `places` the computed ones, elsewhere earlier ones.

    Args:
      outputs: outputs of the tokens that were computed.
      places: their places in the map.
      earlier: outputs of a complete square map.
      count: number of tokens of this map, `T`.
    """
    rows, size, width = earlier.shape
    side, target = round(size**0.5), round(count**0.5)
    maps = earlier.reshape(rows, side, side, width)
    maps = resize(maps, area_matrix(side, target)).reshape(rows, count, width)
    row = jnp.arange(rows)[:, None]
    return maps.astype(outputs.dtype).at[row, places].set(outputs)
