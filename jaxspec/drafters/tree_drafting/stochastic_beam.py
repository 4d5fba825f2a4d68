"""Stochastic beam search (RSD-S): paths sampled without replacement."""

import jax
import jax.numpy as jnp

from jaxspec.drafters.tree_drafting.select import (
    drafter_log_probs,
    inherit,
    private_noise,
)
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext
from jaxspec.speculative.trees.dynamic import StochasticBeam
from jaxspec.typing import Array


def grow_stochastic_beam(ctx: DraftContext, step, node_state, carry):
    """Keeps, at each depth, the paths with the highest perturbed log-probability.

    A path's Gumbel value is sampled given that of its parent, so the kept paths are a
    sample without replacement from the drafter's distribution of paths (RSD-S, arXiv
    2402.14160; stochastic beam search, arXiv 1903.06059). Siblings are in descending
    order of that value, the order in which `Rejection` has to try them.

    See `grow` for the arguments.

    Raises:
      ConfigError: the selection is not "without_replacement".
    """
    tree = ctx.tree
    assert isinstance(tree, StochasticBeam)
    if ctx.selection != "without_replacement":
        raise ConfigError(
            "a StochasticBeam samples without replacement; use a verifier that needs "
            "this, such as Rejection, or set Engine.selection='without_replacement'"
        )
    batch = ctx.root.shape[0]
    frontier, alive = ctx.root[:, None], jnp.ones((batch, 1), bool)
    log_path = perturbed = jnp.zeros((batch, 1), jnp.float32)
    first, levels, log_qs = 0, [], []  # `first`: index of the frontier's first node
    for depth in range(tree.max_depth):
        logits, node_state, carry = step(depth, frontier, node_state, carry)
        log_q = drafter_log_probs(ctx, logits)
        log_qs.append(log_q)
        vocabulary = log_q.shape[-1]
        child = jnp.where(alive[..., None], log_path[..., None] + log_q, -jnp.inf)
        raw = child + private_noise(ctx, depth, log_q.shape[1:])
        value = _with_maximum(raw, perturbed[..., None])
        value = jnp.where(jnp.isfinite(child), value, -jnp.inf).reshape(batch, -1)
        keep = min(tree.beam, value.shape[1])
        perturbed, best = jax.lax.top_k(value, keep)
        log_path = jnp.take_along_axis(child.reshape(batch, -1), best, axis=1)
        frontier, parent = best % vocabulary, best // vocabulary
        alive = perturbed > -jnp.inf
        short = ((0, 0), (0, tree.beam - keep))
        frontier, parent, alive = (jnp.pad(x, short) for x in (frontier, parent, alive))
        node_state = inherit(node_state, parent)
        perturbed = jnp.pad(perturbed, short, constant_values=-jnp.inf)
        log_path = jnp.pad(log_path, short, constant_values=-jnp.inf)
        levels.append((frontier, alive, jnp.where(alive, parent + first, 0)))
        first = first + 1 if depth == 0 else first + tree.beam
    tokens, valid, parents = (
        jnp.concatenate(x, axis=1) for x in zip(*levels, strict=True)
    )
    root = jnp.ones((batch, 1), bool)
    shape = batch, tree.beam, log_qs[0].shape[-1]
    leaves = jnp.zeros(shape, jnp.float32)  # never read: leaves have no children
    draft = Draft(
        jnp.concatenate([ctx.root[:, None], tokens.astype(jnp.int32)], axis=1),
        jnp.concatenate([root, valid], axis=1),
        log_q=jnp.concatenate([*log_qs, leaves], axis=1),
        parents=jnp.pad(parents, ((0, 0), (1, 0))).astype(jnp.int32),
        selection=ctx.selection,
    )
    return draft, carry


def _with_maximum(raw: Array, maximum: Array) -> Array:
    """Conditions the children's Gumbel values on their maximum being `maximum`."""
    top = jnp.max(raw, axis=-1, keepdims=True)
    below = jnp.where(jnp.isfinite(raw), raw - top, -jnp.inf)
    # log1p(-exp(.)) is -inf at the greatest child itself, which then gets `maximum`.
    gap = maximum - raw + jnp.log1p(-jnp.exp(jnp.minimum(below, 0.0)))
    gap = jnp.where(below == 0, -jnp.inf, gap)
    return maximum - jnp.maximum(gap, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(gap)))
