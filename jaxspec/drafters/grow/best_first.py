"""DySpec's greedy expansion: one node at a time, where acceptance is likeliest."""

import jax
import jax.numpy as jnp

from jaxspec.drafters.grow.select import drafter_log_probs, private_noise
from jaxspec.errors import ConfigError
from jaxspec.spec.draft import Draft, DraftContext
from jaxspec.spec.envelopes import BestFirst


def grow_best_first(ctx: DraftContext, step, own, shared):
    """Gives the place that is likeliest to be reached its token, again and again.

    Each node offers one place at a time: for its next child, which is reached if the
    node is accepted and its earlier children are not. The place is chosen before its
    token is drawn from what the earlier children left of `q`, so the tokens stay honest
    samples without replacement (DySpec, arXiv 2410.11744). As a `lax.fori_loop` of
    `N - 1` steps; every step asks for one node's scores.

    Arguments as in `grow`; `step` is asked with a depth for each row.

    Raises:
      ConfigError: candidates are to be drawn with replacement.
    """
    tree = ctx.tree
    assert isinstance(tree, BestFirst)
    if ctx.selection not in ("coupled", "top", "without_replacement"):
        raise ConfigError(
            f"a BestFirst tree cannot be drawn {ctx.selection}; use selection "
            "'coupled', 'top' or 'without_replacement'"
        )
    rows, size = ctx.root.shape[0], tree.size
    row = jnp.arange(rows)
    depth = jnp.zeros(rows, jnp.int32)
    logits, own, shared = step(depth, ctx.root[:, None], own, shared)
    first = drafter_log_probs(ctx, logits)

    def slots(x):  # of every node; the root's is known
        return jnp.zeros((rows, size, *x.shape[2:]), x.dtype).at[:, 0].set(x[:, 0])

    vocabulary = first.shape[-1]
    empty = jnp.full((rows, size, vocabulary), -jnp.inf, first.dtype)
    carry = {
        "log_q": empty.at[:, 0].set(first[:, 0]),  # after each node
        "left": empty.at[:, 0].set(first[:, 0]),  # what its children left of it
        "value": jnp.full((rows, size), -jnp.inf).at[:, 0].set(0.0),  # of its place
        "children": jnp.zeros((rows, size), jnp.int32),
        "tokens": jnp.zeros((rows, size), jnp.int32).at[:, 0].set(ctx.root),
        "parents": jnp.zeros((rows, size), jnp.int32),
        "depths": jnp.zeros((rows, size), jnp.int32),
        "valid": jnp.zeros((rows, size), bool).at[:, 0].set(True),
        "own": jax.tree.map(slots, own),
        "shared": shared,
    }

    def add(n, c):
        parent = jnp.argmax(c["value"], axis=1).astype(jnp.int32)
        value, depth = c["value"][row, parent], c["depths"][row, parent]
        open_ = value > -jnp.inf
        left = c["left"][row, parent]  # [B, V], normalized
        if ctx.selection == "without_replacement":
            noise = private_noise(ctx, n, (vocabulary,))
        elif ctx.selection == "coupled":
            at = jnp.minimum(depth, ctx.noise.shape[1] - 1)
            noise = ctx.noise[row, at]
        else:
            noise = jnp.zeros_like(left)
        token = jnp.argmax(left + noise, axis=1).astype(jnp.int32)
        chance = left[row, token]
        found = open_ & (chance > -jnp.inf)
        given = jax.tree.map(lambda x: x[row, parent][:, None], c["own"])
        logits, own, shared = step(depth + 1, token[:, None], given, c["shared"])
        after = drafter_log_probs(ctx, logits)[:, 0]
        rest = left.at[row, token].set(-jnp.inf)
        total = jax.nn.logsumexp(rest, axis=1)
        some = total > -jnp.inf
        rest = jnp.where(some[:, None], rest - total[:, None], -jnp.inf)
        full = c["children"][row, parent] + 1 >= tree.branch
        next_place = jnp.where(some & ~full & found, value + total, -jnp.inf)
        deeper = found & (depth + 1 < tree.max_depth)
        return {
            "log_q": c["log_q"].at[:, n].set(after),
            "left": c["left"].at[row, parent].set(rest).at[:, n].set(after),
            "value": c["value"]
            .at[row, parent]
            .set(next_place)
            .at[:, n]
            .set(jnp.where(deeper, value + chance, -jnp.inf)),
            "children": c["children"].at[row, parent].add(1),
            "tokens": c["tokens"].at[:, n].set(token),
            "parents": c["parents"].at[:, n].set(jnp.where(found, parent, 0)),
            "depths": c["depths"].at[:, n].set(depth + 1),
            "valid": c["valid"].at[:, n].set(found),
            "own": jax.tree.map(lambda x, y: x.at[:, n].set(y[:, 0]), c["own"], own),
            "shared": shared,
        }

    c = jax.lax.fori_loop(1, size, add, carry)
    draft = Draft(
        c["tokens"],
        c["valid"],
        log_q=c["log_q"],
        parents=c["parents"],
        selection=ctx.selection,
    )
    return draft, c["shared"]
