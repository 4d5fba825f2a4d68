"""Greedy tree expansion (DySpec): one node at a time, the likeliest one first."""

import jax
import jax.numpy as jnp

from jaxspec.drafters.tree_drafting.select import drafter_log_probs, private_noise
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext
from jaxspec.speculative.trees.dynamic import BestFirst


def grow_best_first(ctx: DraftContext, step, node_state, carry):
    """Adds the child that verification is likeliest to reach, one at a time.

    The next child of a node is reached if the node is accepted and its earlier children
    are rejected. Which node gets a child is decided before the child's token is sampled
    from `q` without the tokens of its earlier siblings, so the tokens stay unbiased
    samples without replacement (DySpec, arXiv 2410.11744). Implemented as a
    `lax.fori_loop` of `N - 1` iterations, each of which calls `step` for one node.

    See `grow` for the arguments; `step` gets depths int32 [B].

    Raises:
      ConfigError: the selection is neither "coupled", "top" nor
        "without_replacement".
    """
    tree = ctx.tree
    assert isinstance(tree, BestFirst)
    if ctx.selection not in ("coupled", "top", "without_replacement"):
        raise ConfigError(
            f"a BestFirst tree does not support selection {ctx.selection!r}; use "
            "'coupled', 'top' or 'without_replacement'"
        )
    batch, size = ctx.root.shape[0], tree.size
    sequence = jnp.arange(batch)
    depth = jnp.zeros(batch, jnp.int32)
    logits, node_state, carry = step(depth, ctx.root[:, None], node_state, carry)
    root_log_q = drafter_log_probs(ctx, logits)

    def for_all_nodes(x):  # the root's value first, then zeros
        return jnp.zeros((batch, size, *x.shape[2:]), x.dtype).at[:, 0].set(x[:, 0])

    vocabulary = root_log_q.shape[-1]
    empty = jnp.full((batch, size, vocabulary), -jnp.inf, root_log_q.dtype)
    loop_state = {
        "log_q": empty.at[:, 0].set(root_log_q[:, 0]),
        # `log_q` without the tokens of the node's children, normalized.
        "rest": empty.at[:, 0].set(root_log_q[:, 0]),
        # Log-probability that verification reaches the node's next child.
        "value": jnp.full((batch, size), -jnp.inf).at[:, 0].set(0.0),
        "children": jnp.zeros((batch, size), jnp.int32),
        "tokens": jnp.zeros((batch, size), jnp.int32).at[:, 0].set(ctx.root),
        "parents": jnp.zeros((batch, size), jnp.int32),
        "depths": jnp.zeros((batch, size), jnp.int32),
        "valid": jnp.zeros((batch, size), bool).at[:, 0].set(True),
        "node_state": jax.tree.map(for_all_nodes, node_state),
        "carry": carry,
    }

    def add(n, c):
        parent = jnp.argmax(c["value"], axis=1).astype(jnp.int32)
        value, depth = c["value"][sequence, parent], c["depths"][sequence, parent]
        rest = c["rest"][sequence, parent]  # [B, V]
        if ctx.selection == "without_replacement":
            noise = private_noise(ctx, n, (vocabulary,))
        elif ctx.selection == "coupled":
            index = jnp.minimum(depth, ctx.noise.shape[1] - 1)
            noise = ctx.noise[sequence, index]
        else:
            noise = jnp.zeros_like(rest)
        token = jnp.argmax(rest + noise, axis=1).astype(jnp.int32)
        log_chance = rest[sequence, token]
        valid = (value > -jnp.inf) & (log_chance > -jnp.inf)
        parent_state = jax.tree.map(
            lambda x: x[sequence, parent][:, None], c["node_state"]
        )
        logits, node_state, carry = step(
            depth + 1, token[:, None], parent_state, c["carry"]
        )
        log_q = drafter_log_probs(ctx, logits)[:, 0]
        rest = rest.at[sequence, token].set(-jnp.inf)
        total = jax.nn.logsumexp(rest, axis=1)
        nonempty = total > -jnp.inf
        rest = jnp.where(nonempty[:, None], rest - total[:, None], -jnp.inf)
        full = c["children"][sequence, parent] + 1 >= tree.branch
        sibling_value = jnp.where(nonempty & ~full & valid, value + total, -jnp.inf)
        expandable = valid & (depth + 1 < tree.max_depth)
        child_value = jnp.where(expandable, value + log_chance, -jnp.inf)
        return {
            "log_q": c["log_q"].at[:, n].set(log_q),
            "rest": c["rest"].at[sequence, parent].set(rest).at[:, n].set(log_q),
            "value": c["value"]
            .at[sequence, parent]
            .set(sibling_value)
            .at[:, n]
            .set(child_value),
            "children": c["children"].at[sequence, parent].add(1),
            "tokens": c["tokens"].at[:, n].set(token),
            "parents": c["parents"].at[:, n].set(jnp.where(valid, parent, 0)),
            "depths": c["depths"].at[:, n].set(depth + 1),
            "valid": c["valid"].at[:, n].set(valid),
            "node_state": jax.tree.map(
                lambda x, y: x.at[:, n].set(y[:, 0]), c["node_state"], node_state
            ),
            "carry": carry,
        }

    c = jax.lax.fori_loop(1, size, add, loop_state)
    draft = Draft(
        c["tokens"],
        c["valid"],
        log_q=c["log_q"],
        parents=c["parents"],
        selection=ctx.selection,
    )
    return draft, c["carry"]
