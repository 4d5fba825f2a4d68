"""Beam trees: the likeliest paths, as in EAGLE-2's reranking and DDTree."""

import jax
import jax.numpy as jnp

from jaxspec.drafters.tree_drafting.select import (
    choose_children,
    drafter_log_probs,
    inherit,
)
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext
from jaxspec.speculative.trees.dynamic import Beam


def grow_beam(ctx: DraftContext, step, node_state, carry):
    """Expands the best nodes of each depth, and keeps the best of all nodes.

    A path's score is the sum of its tokens' log-probabilities: the drafter's own, or,
    with the selection "coupled", those of the sharpened noisy scores (see `Beam`). It
    never rises along a path, so the kept nodes form a tree.

    See `grow` for the arguments.

    Raises:
      ConfigError: the selection samples tokens. Keeping the likeliest samples would
        bias every verifier that relies on their distribution.
    """
    tree = ctx.tree
    assert isinstance(tree, Beam)
    if ctx.selection not in ("coupled", "top"):
        raise ConfigError(
            f"a Beam keeps the likeliest nodes, which biases selection "
            f"{ctx.selection!r}; use 'coupled' or 'top', or a StochasticBeam"
        )
    batch = ctx.root.shape[0]
    frontier = ctx.root[:, None]
    frontier_score = jnp.zeros((batch, 1), jnp.float32)
    frontier_node = jnp.zeros((batch, 1), jnp.int32)  # index in `pool`
    pool = [(frontier, frontier_score, frontier_node)]
    pool_size = 1
    for depth in range(tree.max_depth):
        logits, node_state, carry = step(depth, frontier, node_state, carry)
        log_q = drafter_log_probs(ctx, logits)
        width = min(tree.branch, log_q.shape[-1])
        count = jnp.full(frontier.shape[1], width)
        ids, value = choose_children(ctx, depth, log_q, width, count)
        if ctx.selection == "coupled":
            noisy = tree.sharpness * (log_q + ctx.noise[:, depth, None])
            total = jax.nn.logsumexp(noisy, axis=-1, keepdims=True)
            # Tokens of probability 0 get -inf: NaN might sort before the root.
            noisy = tree.sharpness * value - total
            value = jnp.where(value > -jnp.inf, noisy, -jnp.inf)
        score = (frontier_score[..., None] + jnp.minimum(value, 0.0)).reshape(batch, -1)
        tokens = ids.reshape(batch, -1)
        parents = jnp.repeat(frontier_node, width, axis=1)
        pool.append((tokens, score, parents))
        keep = min(tree.beam, score.shape[1])
        frontier_score, best = jax.lax.top_k(score, keep)
        frontier = jnp.take_along_axis(tokens, best, axis=1)
        frontier_node = (pool_size + best).astype(jnp.int32)
        node_state = inherit(node_state, best // width)
        pool_size += score.shape[1]
    tokens, score, parents = (
        jnp.concatenate(x, axis=1) for x in zip(*pool, strict=True)
    )
    count = min(tree.nodes, pool_size)
    # Ties go to the lower index, so to the parent; the root's score is the highest.
    value, chosen = jax.lax.top_k(score, count)
    order = jnp.argsort(chosen, axis=1)
    chosen = jnp.take_along_axis(chosen, order, axis=1)
    valid = jnp.take_along_axis(value, order, axis=1) > -jnp.inf
    sequence = jnp.arange(batch)[:, None]
    new_index = jnp.zeros((batch, pool_size), jnp.int32)
    new_index = new_index.at[sequence, chosen].set(jnp.arange(count, dtype=jnp.int32))
    parents = jnp.take_along_axis(parents, chosen, axis=1)
    parents = jnp.take_along_axis(new_index, parents, axis=1)
    tokens = jnp.take_along_axis(tokens, chosen, axis=1)
    missing = ((0, 0), (0, tree.nodes - count))
    draft = Draft(
        jnp.pad(tokens, missing),
        jnp.pad(valid, missing),
        parents=jnp.pad(jnp.where(valid, parents, 0), missing),
        selection=ctx.selection,
    )
    return draft, carry
