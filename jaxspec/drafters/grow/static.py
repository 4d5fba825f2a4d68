"""Filling a static tree, level by level."""

import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.grow.select import choose_children, drafter_log_probs, inherit
from jaxspec.spec.draft import Draft, DraftContext
from jaxspec.spec.tree import Tree


def fill_tree(ctx: DraftContext, step, own, shared):
    """Fills a static tree with the best children of each node.

    With coupled candidates, children are ranked by `log q + noise`, the noise being
    that which the target's own choice at their position will use: rank 0 is the token
    that the target would choose if it agreed with the drafter. Where the noise is 0
    (greedy rows) they are ranked by likelihood.

    Arguments as in `grow`.
    """
    tree = ctx.tree
    assert isinstance(tree, Tree)
    rows = ctx.root.shape[0]
    tokens = jnp.zeros((rows, tree.size), jnp.int32).at[:, 0].set(ctx.root)
    valid = jnp.ones((rows, tree.size), bool)
    log_q = {}
    given = np.array([0])  # nodes that `own` is for
    for depth in range(tree.depth):
        parents = np.intersect1d(tree.levels[depth], tree.internal)
        children = tree.levels[depth + 1]
        ranks = np.array(tree.ranks)[children]
        place = np.searchsorted(parents, np.array(tree.parents)[children])
        own = inherit(own, np.searchsorted(given, parents)[None])
        logits, own, shared = step(depth, tokens[:, parents], own, shared)
        level = drafter_log_probs(ctx, logits)
        count = jnp.asarray((tree.children[tree.slots[parents]] >= 0).sum(axis=1))
        ids, best = choose_children(ctx, depth, level, int(ranks.max()) + 1, count)
        tokens = tokens.at[:, children].set(ids[:, place, ranks])
        valid = valid.at[:, children].set(best[:, place, ranks] > -jnp.inf)
        log_q.update({n: level[:, i] for i, n in enumerate(parents)})
        own = inherit(own, place[None])
        given = children
    in_order = [log_q[n] for n in tree.internal]
    none = jnp.zeros((rows, 0, ctx.noise.shape[-1]), jnp.float32)
    draft = Draft(
        tokens,
        valid,
        log_q=jnp.stack(in_order, axis=1) if in_order else none,
        selection=ctx.selection,
    )
    return draft, shared
