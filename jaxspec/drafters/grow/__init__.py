"""From a drafter's scores to a draft: one file a kind of tree."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.grow.beam import grow_beam
from jaxspec.drafters.grow.best_first import grow_best_first
from jaxspec.drafters.grow.static import fill_tree
from jaxspec.drafters.grow.stochastic_beam import grow_stochastic_beam
from jaxspec.spec.draft import Draft, DraftContext
from jaxspec.spec.envelopes import Beam, BestFirst, DynamicTree, StochasticBeam
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Float, Int, PyTree

# (depth, tokens [B, M], own, shared) -> (logits [B, M, V], own, shared)
Step = Callable[
    [int | Int[Array, "B"], Int[Array, "B M"], PyTree, PyTree],
    tuple[Float[Array, "B M V"], PyTree, PyTree],
]


def grow(
    ctx: DraftContext, step: Step, own: PyTree = (), shared: PyTree = ()
) -> tuple[Draft, PyTree]:
    """Makes a draft of the round's kind of tree.

    Args:
      ctx: what is known of the round; its `tree` and `selection` say what is made.
      step: reads nodes of one depth (0 is the root's; a number, or `[B]` for
        `BestFirst`) that hold `tokens`, and returns the logits of what follows them:
        guidance merged, not yet processed. Each node is given what its parent's step
        returned as its `own`, and returns its own: arrays `[B, M, ...]`, such as a
        hidden state. `shared` is handed from step to step, such as a cache.
      own: what the root is given, `[B, 1, ...]`.
      shared: what the first step is given.

    Returns:
      The draft, and `shared` after the last step.

    Raises:
      ConfigError: this kind of tree cannot be grown from such candidates.
    """
    if isinstance(ctx.tree, Beam):
        return grow_beam(ctx, step, own, shared)
    if isinstance(ctx.tree, StochasticBeam):
        return grow_stochastic_beam(ctx, step, own, shared)
    if isinstance(ctx.tree, BestFirst):
        return grow_best_first(ctx, step, own, shared)
    return fill_tree(ctx, step, own, shared)


def expansions(tree: Tree | DynamicTree) -> tuple[int, int]:
    """Most nodes that steps are asked to read in all, and at once."""
    if isinstance(tree, Tree):
        inner = np.isin(np.arange(tree.size), tree.internal)
        levels = [int(inner[level].sum()) for level in tree.levels]
        return sum(levels), max([1, *levels])
    if isinstance(tree, BestFirst):
        return tree.size, 1
    return 1 + (tree.max_depth - 1) * tree.beam, max(tree.beam, 1)


def at_depth(x: Float[Array, "B G V"], depth: int | Int[Array, "B"]) -> Array:
    """`[B, 1, V]`: the marginals of one depth, or of one depth for each row."""
    if isinstance(depth, int):
        return x[:, depth, None]
    last = jnp.minimum(depth, x.shape[1] - 1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)
