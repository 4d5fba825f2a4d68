"""Nodes and probabilities that no draft can have."""

from collections.abc import Iterator

import numpy as np

from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.recorded_rounds import Round


def draft_faults(
    each: Round, rows: np.ndarray, tree: Tree | DynamicTree, vocab_size: int
) -> Iterator[str]:
    """Yields sentences on impossible nodes and probabilities of one round.

    Args:
      each: round.
      rows: bool [B], sequences that are checked.
      tree: draft tree, or the bound of a dynamic one.
      vocab_size: size of the vocabulary, `V`.
    """
    draft = each.draft
    tokens = np.asarray(draft.tokens)[rows]
    valid = np.asarray(draft.valid)[rows]
    valid[:, 0] = True
    wrong = valid & ((tokens < 0) | (tokens >= vocab_size))
    wrong[:, 0] = False
    if wrong.any():
        node = int(np.argwhere(wrong)[0, 1])
        yield (
            f"Draft.tokens has {tokens[wrong][0]} at node {node}, which is valid; "
            f"tokens are 0 to {vocab_size - 1}"
        )
    slots = np.arange(tree.size)
    if isinstance(tree, Tree) and draft.parents is None:
        parents = np.broadcast_to(np.maximum(np.array(tree.parents), 0), tokens.shape)
        slots = np.asarray(tree.slots)
    else:
        parents = np.asarray(draft.parents)[rows]
        yield from _parent_faults(parents, valid, tree)
    if draft.log_q is None:
        return
    log_q = np.asarray(draft.log_q, np.float64)[rows]
    parents = np.clip(parents, 0, tree.size - 1)
    for node in range(1, tree.size):
        use = valid[:, node]
        q = log_q[use, slots[parents[use, node]]]
        if not len(q):
            continue
        with np.errstate(over="ignore"):
            total = np.exp(q).sum(axis=-1)
        if not (np.abs(total - 1) <= 1e-3).all():
            yield (
                f"Draft.log_q of the parent of node {node} has probabilities with sum "
                f"{total[np.argmax(np.abs(total - 1))]:.4g}, not 1; return the "
                "log_softmax of processed logits, which grow makes of logits"
            )
            return
        known = np.clip(tokens[use, node], 0, vocab_size - 1)
        if (np.take_along_axis(q, known[:, None], axis=-1) == -np.inf).any():
            yield (
                f"Draft.log_q is -inf at a token of node {node}: the drafter could not "
                "have chosen it; return the log_q of its parent, or make it invalid"
            )
            return


def _parent_faults(
    parents: np.ndarray, valid: np.ndarray, tree: Tree | DynamicTree
) -> Iterator[str]:
    """Parents that no dynamic tree may have."""
    batch, size = parents.shape
    depth = np.zeros((batch, size), int)
    count = np.zeros((batch, size), int)
    for node in range(1, size):
        use = valid[:, node]
        parent = parents[:, node]
        wrong = use & ((parent < 0) | (parent >= node))
        if wrong.any():
            yield (
                f"Draft.parents has {parent[wrong][0]} for node {node}; parents come "
                "before their children"
            )
            return
        rows = np.flatnonzero(use)
        depth[rows, node] = depth[rows, parent[rows]] + 1
        count[rows, parent[rows]] += 1
    if depth.max() > tree.depth:
        yield (
            f"Draft.parents makes a path of {depth.max()} drafted tokens; the tree "
            f"allows {tree.depth}"
        )
    if count.max() > tree.width:
        yield (
            f"Draft.parents gives a node {count.max()} valid children; the tree allows "
            f"{tree.width}"
        )
