"""Checks that the children of a draft were selected as the draft declares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxspec.speculative.trees.tree import Tree

# Largest score by which a child may miss its rank, because of rounding.
TOLERANCE = 1e-3
# Largest deviation of a sum over samples, in standard errors.
ERRORS = 6.0


@dataclass(frozen=True)
class Siblings:
    """Drafts of a static tree, as NumPy arrays.

    Attributes:
      tree: draft tree.
      tokens: int [B, N], tokens of the nodes.
      valid: bool [B, N], mask of the nodes that may be accepted.
      log_q: float [B, I, V], log-probabilities of the drafter.
      noise: float [B or 1, A, V], noise that the target will use.
    """

    tree: Tree
    tokens: np.ndarray
    valid: np.ndarray
    log_q: np.ndarray
    noise: np.ndarray

    def in_order(self, order: Sequence[int]) -> "Siblings":
        """The same drafts with other entries of `log_q`."""
        return replace(self, log_q=self.log_q[:, list(order)])

    def children(self, index: int) -> np.ndarray:
        """Nodes below internal node number `index`, by rank."""
        nodes = self.tree.children[index]
        nodes = nodes[nodes >= 0]
        return nodes[np.argsort(np.array(self.tree.ranks)[nodes])]

    def reachable(self, node: int) -> np.ndarray:
        """Mask bool [B] of the drafts in which a node and its ancestors are valid."""
        path = np.flatnonzero(self.tree.ancestors[node])
        return np.asarray(self.valid[:, path].all(axis=1))

    def misranked(self, selection: str) -> tuple[int, int] | None:
        """Parent and child of the first child that is not the best of its rank.

        Args:
          selection: "top" for the best of `log q`, "coupled" for `log q + noise`.
        """
        for i, parent in enumerate(self.tree.internal):
            score = self.log_q[:, i].astype(np.float64)
            if selection == "coupled":
                score = score + self.noise[:, self.tree.depths[parent]]
            ranked = -np.sort(-score, axis=-1)
            for node in self.children(i):
                rank = self.tree.ranks[node]
                actual = np.take_along_axis(score, self._token(node), axis=1)[:, 0]
                expected = ranked[:, rank] if rank < ranked.shape[1] else -np.inf
                wrong = self.reachable(node) & ~(actual >= expected - TOLERANCE)
                if wrong.any():
                    return int(parent), int(node)
        return None

    def deviation(self, selection: str) -> float:
        """Largest deviation of samples from `log_q`, in standard errors.

        Sums of random signs, which depend on a child's token, rank, parent and earlier
        sibling, are compared with their expectation given the past.
        """
        batch, _, size = self.log_q.shape
        rng = np.random.default_rng(0)
        signs = 32 if size <= 256 else 8
        weights = rng.integers(1, 1 << 30, (4, signs))
        total, variance = np.zeros(signs), np.zeros(signs)
        everything = np.arange(size)
        for i, parent in enumerate(self.tree.internal):
            remaining = np.exp(self.log_q[:, i].astype(np.float64))
            children = self.children(i)
            earlier = np.zeros(batch, np.int64)
            for rank, node in enumerate(children):
                reached = self.reachable(node)
                law = _normalized(remaining)
                if selection == "top_and_sample" and rank < len(children) - 1:
                    law = np.eye(size)[law.argmax(axis=-1)]
                context = (
                    weights[1] * self.tokens[:, parent, None].astype(np.int64)
                    + weights[2] * earlier[:, None]
                    + weights[3] * rank
                )
                for j in range(signs):
                    hashed = context[:, j, None] + weights[0, j] * everything[None]
                    sign = 1.0 - 2.0 * ((hashed * 0x9E3779B1 >> 20) & 1)  # [B, V]
                    mean = (law * sign).sum(axis=-1)
                    actual = np.take_along_axis(sign, self._token(node), axis=1)[:, 0]
                    total[j] += np.where(reached, actual - mean, 0.0).sum()
                    variance[j] += np.where(reached, 1.0 - mean**2, 0.0).sum()
                earlier = self._token(node)[:, 0].astype(np.int64) + 1
                if selection != "with_replacement":
                    np.put_along_axis(remaining, self._token(node), 0.0, axis=1)
        # Sums of few rare tokens are not normal, which the constant allows for.
        spread = np.sqrt(np.maximum(variance, 0.0)) + 1.0
        return float((np.abs(total) / spread).max(initial=0.0))

    def _token(self, node: int) -> np.ndarray:
        tokens = np.clip(self.tokens[:, node, None], 0, self.log_q.shape[-1] - 1)
        return tokens.astype(np.int64)


def _normalized(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=-1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), 0.0)


def ranking_fault(drafts: Siblings, selection: str) -> str | None:
    """Sentence on children that are not the best by their rank; None if they are.

    Args:
      drafts: drafts.
      selection: declared selection, "top" or "coupled".
    """
    wrong = drafts.misranked(selection)
    if wrong is None:
        return None
    best = "log_q" if selection == "top" else "log_q + noise"
    other = "coupled" if selection == "top" else "top"
    fault = (
        f"Draft.selection is {selection!r}, but node {wrong[1]} is not the best of its "
        f"rank by {best} of its parent, node {wrong[0]}"
    )
    if drafts.misranked(other) is None:
        return f"{fault}; it is by the selection {other!r}: declare that"
    if hint := _order_hint(drafts, lambda x: x.misranked(selection) is None):
        return f"{fault}; {hint}"
    return f"{fault}; rank the children so, or declare 'guess' for tokens of any kind"


def sampling_fault(drafts: Siblings, selection: str) -> str | None:
    """Sentence on children that are not samples of `log_q`; None if they are.

    Args:
      drafts: drafts with the same past and independent keys.
      selection: declared selection.
    """
    deviation = drafts.deviation(selection)
    if deviation <= ERRORS:
        return None
    claim = f"Draft.selection is {selection!r}"
    if drafts.misranked("top") is None:
        return (
            f"{claim}, but the children are the likeliest tokens; sample them with "
            "ctx.keys, or declare 'top'"
        )
    if (drafts.tokens == drafts.tokens[:1]).all():
        return (
            f"{claim}, but all keys give the same tokens; sample them with ctx.keys, "
            "or declare 'guess'"
        )
    if hint := _order_hint(drafts, lambda x: x.deviation(selection) <= ERRORS):
        return f"{claim}, but the children are no samples of log_q; {hint}"
    return (
        f"{claim}, but the tokens of {len(drafts.tokens)} drafts deviate from log_q by "
        f"{deviation:.0f} standard errors; sample each child from log_q of its parent, "
        "with noise of its own for each depth, and drop none because of its token"
    )


def _order_hint(drafts: Siblings, fits) -> str:
    """Words on another order of `log_q` that fits; empty if there is none."""
    count = drafts.log_q.shape[1]
    orders = {
        "reversed": range(count - 1, -1, -1),
        "one entry too late": [*range(1, count), 0],
        "one entry too early": [count - 1, *range(count - 1)],
    }
    for name, order in orders.items():
        if count > 1 and fits(drafts.in_order(order)):
            return (
                f"log_q is {name}: entry i belongs to node tree.internal[i], and is "
                "the distribution of its children"
            )
    return ""
