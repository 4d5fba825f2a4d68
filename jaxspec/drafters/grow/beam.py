"""The tree of the likeliest paths: EAGLE-2's rerank and DDTree's layered beam."""

import jax
import jax.numpy as jnp

from jaxspec.drafters.grow.select import choose_children, drafter_log_probs, inherit
from jaxspec.errors import ConfigError
from jaxspec.spec.draft import Draft, DraftContext
from jaxspec.spec.envelopes import Beam


def grow_beam(ctx: DraftContext, step, own, shared):
    """Expands the best nodes of each depth; keeps the best of all nodes seen.

    A path's score is the sum of its tokens' log-probabilities: the drafter's own, or,
    with coupled candidates, those of the sharpened noisy scores (see `Beam`). It never
    rises along a path, so what is kept is a tree.

    Arguments as in `grow`.

    Raises:
      ConfigError: candidates are to be drawn: choosing among samples by how likely they
        are would bias every rule that relies on their law.
    """
    tree = ctx.tree
    assert isinstance(tree, Beam)
    if ctx.selection not in ("coupled", "top"):
        raise ConfigError(
            f"a Beam keeps candidates for what they are, so they cannot be drawn "
            f"{ctx.selection}; use selection 'coupled' or 'top', or a StochasticBeam"
        )
    rows = ctx.root.shape[0]
    frontier = ctx.root[:, None]
    frontier_score = jnp.zeros((rows, 1), jnp.float32)
    frontier_node = jnp.zeros((rows, 1), jnp.int32)  # index among all nodes seen
    pool = [(frontier, frontier_score, frontier_node)]
    seen = 1
    for depth in range(tree.max_depth):
        logits, own, shared = step(depth, frontier, own, shared)
        log_q = drafter_log_probs(ctx, logits)
        width = min(tree.branch, log_q.shape[-1])
        count = jnp.full(frontier.shape[1], width)
        ids, value = choose_children(ctx, depth, log_q, width, count)
        if ctx.selection == "coupled":
            noisy = tree.sharpness * (log_q + ctx.noise[:, depth, None])
            total = jax.nn.logsumexp(noisy, axis=-1, keepdims=True)
            # Not NaN where nothing is possible: a NaN may sort before the root.
            noisy = tree.sharpness * value - total
            value = jnp.where(value > -jnp.inf, noisy, -jnp.inf)
        score = (frontier_score[..., None] + jnp.minimum(value, 0.0)).reshape(rows, -1)
        tokens = ids.reshape(rows, -1)
        parents = jnp.repeat(frontier_node, width, axis=1)
        pool.append((tokens, score, parents))
        keep = min(tree.beam, score.shape[1])
        frontier_score, best = jax.lax.top_k(score, keep)
        frontier = jnp.take_along_axis(tokens, best, axis=1)
        frontier_node = (seen + best).astype(jnp.int32)
        own = inherit(own, best // width)
        seen += score.shape[1]
    tokens, score, parents = (
        jnp.concatenate(x, axis=1) for x in zip(*pool, strict=True)
    )
    kept = min(tree.nodes, seen)
    # Ties go to the lower index, so to the parent; the root's score is the highest.
    value, chosen = jax.lax.top_k(score, kept)
    order = jnp.argsort(chosen, axis=1)
    chosen = jnp.take_along_axis(chosen, order, axis=1)
    valid = jnp.take_along_axis(value, order, axis=1) > -jnp.inf
    row = jnp.arange(rows)[:, None]
    new_index = jnp.zeros((rows, seen), jnp.int32)
    numbers = jnp.arange(kept, dtype=jnp.int32)
    new_index = new_index.at[row, chosen].set(numbers)
    parents = jnp.take_along_axis(parents, chosen, axis=1)
    parents = jnp.take_along_axis(new_index, parents, axis=1)
    tokens = jnp.take_along_axis(tokens, chosen, axis=1)
    short = ((0, 0), (0, tree.nodes - kept))
    draft = Draft(
        jnp.pad(tokens, short),
        jnp.pad(valid, short),
        parents=jnp.pad(jnp.where(valid, parents, 0), short),
        selection=ctx.selection,
    )
    return draft, shared
