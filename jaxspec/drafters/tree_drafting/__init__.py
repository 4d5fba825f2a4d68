"""Draft trees from a drafter's logits, with one module per kind of tree."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.tree_drafting.beam import grow_beam
from jaxspec.drafters.tree_drafting.best_first import grow_best_first
from jaxspec.drafters.tree_drafting.static import fill_levels, fill_tree
from jaxspec.drafters.tree_drafting.stochastic_beam import grow_stochastic_beam
from jaxspec.speculative.draft import Draft, DraftContext, MixedLogits
from jaxspec.speculative.trees.dynamic import (
    Beam,
    BestFirst,
    DynamicTree,
    StochasticBeam,
)
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Float, Int, PyTree

# (depth, tokens [B, M], node_state, carry) -> (logits [B, M, V], node_state, carry)
Step = Callable[
    [int | Int[Array, "B"], Int[Array, "B M"], PyTree, PyTree],
    tuple[Float[Array, "B M V"], PyTree, PyTree],
]


def grow(
    ctx: DraftContext, step: Step, node_state: PyTree = (), carry: PyTree = ()
) -> tuple[Draft, PyTree]:
    """Makes a draft on the round's tree.

    Args:
      ctx: the round, whose `tree` and `selection` determine the draft.
      step: function `(depth, tokens, node_state, carry) -> (logits, node_state,
        carry)`. It reads nodes of one depth that hold `tokens` int32 [B, M], and
        returns the logits [B, M, V] of the next tokens, guidance merged and not yet
        processed. `depth` is 0 for the root; an int, or int32 [B] for `BestFirst`.
        `node_state` holds arrays [B, M, ...], such as hidden states: each node gets the
        state that the step of its parent returned. `carry` is passed from step to step,
        such as a KV cache.
      node_state: state of the root, arrays [B, 1, ...].
      carry: carry of the first step.

    Returns:
      The draft, and the carry after the last step.

    Raises:
      ConfigError: this kind of tree does not support the selection.
    """
    if ctx.mixed is not None:
        step = _with_mixed_logits(step, ctx.mixed)
    if isinstance(ctx.tree, Beam):
        return grow_beam(ctx, step, node_state, carry)
    if isinstance(ctx.tree, StochasticBeam):
        return grow_stochastic_beam(ctx, step, node_state, carry)
    if isinstance(ctx.tree, BestFirst):
        return grow_best_first(ctx, step, node_state, carry)
    return fill_tree(ctx, step, node_state, carry)


def grow_by_depth(ctx: DraftContext, logits: Float[Array, "B G V"]) -> Draft:
    """Makes a draft whose nodes of one depth have the same logits.

    It is the draft of `grow`. The levels of a static tree are filled at the same time,
    if children are ranked by numbers that need no samples of the drafter.

    Args:
      ctx: the round.
      logits: float32 [B, G, V], logits of the tokens 1 to `G` places after the root,
        guidance merged and not yet processed; at least as many as the tree is deep.

    Raises:
      ConfigError: this kind of tree does not support the selection.
    """
    if isinstance(ctx.tree, Tree) and ctx.selection in ("coupled", "top"):
        if ctx.mixed is not None:
            depth, mixed = ctx.tree.depth, ctx.mixed
            known = mixed.known[:, :depth, None]
            logits = _interpolate(
                logits[:, :depth], mixed.logits[:, :depth], known, mixed
            )
        return fill_levels(ctx, logits)

    def step(depth, tokens, node_state, carry):
        level = at_depth(logits, depth)
        level = jnp.broadcast_to(level, (*tokens.shape, logits.shape[-1]))
        return level, node_state, carry

    return grow(ctx, step)[0]


def _interpolate(logits, other, known, mixed: MixedLogits):
    """Logits interpolated with others, where these are known."""
    both = (1 - mixed.weight) * logits + mixed.weight * other
    return jnp.where(known, both, logits)


def _with_mixed_logits(step: Step, mixed: MixedLogits) -> Step:
    """A step whose logits are interpolated with others, where these are known."""

    def mixed_step(depth, tokens, node_state, carry):
        logits, node_state, carry = step(depth, tokens, node_state, carry)
        other = at_depth(mixed.logits, depth)
        known = at_depth(mixed.known[..., None], depth)
        return _interpolate(logits, other, known, mixed), node_state, carry

    return mixed_step


def expansions(tree: Tree | DynamicTree) -> tuple[int, int]:
    """Counts the nodes that `grow` reads, at most: in all steps, and in one step."""
    if isinstance(tree, Tree):
        inner = np.isin(np.arange(tree.size), tree.internal)
        levels = [int(inner[level].sum()) for level in tree.levels]
        return sum(levels), max([1, *levels])
    if isinstance(tree, BestFirst):
        return tree.size, 1
    return 1 + (tree.max_depth - 1) * tree.beam, max(tree.beam, 1)


def at_depth(
    x: Float[Array, "B M V"] | Int[Array, "B M V"] | Bool[Array, "B M V"],
    depth: int | Int[Array, "B"],
) -> Array:
    """Selects one depth: `[B, M, V]` to `[B, 1, V]`.

    Args:
      x: array [B, M, V], values of `M` depths.
      depth: one depth, or int32 [B] for a depth per sequence.
    """
    if isinstance(depth, int):
        return x[:, depth, None]
    last = jnp.minimum(depth, x.shape[1] - 1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)
