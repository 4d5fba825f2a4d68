"""From a drafter's scores to a draft: one file a kind of tree."""

from collections.abc import Callable

import jax.numpy as jnp

from jaxspec.drafters.grow.beam import grow_beam
from jaxspec.drafters.grow.best_first import grow_best_first
from jaxspec.drafters.grow.static import fill_tree
from jaxspec.drafters.grow.stochastic_beam import grow_stochastic_beam
from jaxspec.spec.draft import Draft, Round
from jaxspec.spec.envelopes import Beam, BestFirst, StochasticBeam
from jaxspec.typing import Array, Float, Int

Scores = Callable[[int | Int[Array, "B"], Int[Array, "B M"]], Float[Array, "B M V"]]


def grow(this: Round, scores: Scores) -> Draft:
    """Makes a draft of the round's kind of tree.

    Args:
      this: what is known of the round; its `tree` and `selection` say what is made.
      scores: `(depth, tokens [B, M]) -> logits [B, M, V]` after nodes of one depth (0
        is the root's; a number, or `[B]` for `BestFirst`) that hold `tokens`, guidance
        merged, not yet processed.

    Raises:
      ConfigError: this kind of tree cannot be grown from such candidates.
    """
    if isinstance(this.tree, Beam):
        return grow_beam(this, scores)
    if isinstance(this.tree, StochasticBeam):
        return grow_stochastic_beam(this, scores)
    if isinstance(this.tree, BestFirst):
        return grow_best_first(this, scores)
    return fill_tree(this, scores)


def at_depth(x: Float[Array, "B G V"], depth: int | Int[Array, "B"]) -> Array:
    """`[B, 1, V]`: the marginals of one depth, or of one depth for each row."""
    if isinstance(depth, int):
        return x[:, depth, None]
    last = jnp.minimum(depth, x.shape[1] - 1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)
