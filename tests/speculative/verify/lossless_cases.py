"""Lossless verifiers, and all drafts of random drafters as one batch."""

from dataclasses import dataclass, replace
from functools import cache

import jax
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys, draw_noise
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Coupled, GreedySet, KSeq, Rejection
from jaxspec.testing.drafts import Conditionals, all_drafts

# A verifier, its selection, and the tree that is drafted for it.
LOSSLESS = {
    "Rejection": (Rejection(), "without_replacement", "0,1,00"),
    "Rejection, independent": (Rejection(), "with_replacement", "0,1,00"),
    "Rejection, given": (Rejection(), "top", "0,1,00"),
    "KSeq": (KSeq(), "with_replacement", "0,1,00"),
    "GreedySet": (GreedySet(), "top_and_sample", "0,1,00"),
    "Block": (Block(), "without_replacement", "chain-2"),
    "Coupled": (Coupled(), "coupled", "0,1,00"),
}
EVERY_VERIFIER = pytest.mark.parametrize(
    "verifier, selection, tree", LOSSLESS.values(), ids=LOSSLESS
)


@dataclass
class Batch:
    """Every possible draft of several drafters, as the rows of one batch."""

    draft: Draft
    log_p: np.ndarray  # [B, N, V]
    chance: np.ndarray
    ends: np.ndarray  # where the rows of the next drafter begin
    tree: Tree

    def mean(self, of_rows):
        """Expectation over the drafts of each drafter."""
        return np.array([x.sum() for x in np.split(self.chance * of_rows, self.ends)])

    def kept(self, verifier):
        """Expected number of drafted tokens that are kept, for each drafter."""
        stop, _ = outcome_of(verifier, self.log_p, self.draft, self.tree)
        return self.mean(stop @ self.tree.depths)


def outcome_of(verifier, log_p, draft, tree, greedy=None):
    """Outcome of a verifier: `stop [B, N]` and `final [B, N, V]`."""
    rows = len(log_p)
    greedy = np.zeros(rows, bool) if greedy is None else greedy
    padded = -(-rows // 1024) * 1024  # few shapes, so that little is compiled
    outcome = compiled(verifier, "outcome", tree)(
        *repeated((log_p, draft, greedy), padded)
    )
    return np.asarray(outcome.stop)[:rows], np.asarray(outcome.final)[:rows]


def repeated(rows, count):
    """Repeats the rows until there are `count`."""
    return jax.tree.map(lambda x: x[np.arange(count) % len(x)], rows)


@cache
def compiled(verifier, method, tree):
    """`verifier.outcome` or `.verify` of scores, draft, and greedy mask or noise."""
    call = getattr(verifier, method)
    return jax.jit(lambda log_p, draft, given: call(log_p, draft, tree, given))


def batch_of_drafts(pairs, tree, selection):
    """All drafts of each pair `(p, q)`, with the target's scores at each node."""
    tree = Tree.named(tree) if isinstance(tree, str) else tree
    drafts = [possible(all_drafts(q, tree, selection)) for _, q in pairs]
    scores = []
    for (p, _), found in zip(pairs, drafts, strict=True):
        tokens = np.asarray(found.draft.tokens)
        paths = [tree.paths[n][1 : tree.depths[n] + 1] for n in range(tree.size)]
        scores.append(np.stack([p.after(tokens[:, path]) for path in paths], axis=1))
    with np.errstate(divide="ignore"):
        log_p = np.log(np.concatenate(scores))
    return Batch(
        jax.tree.map(lambda *x: np.concatenate(x), *(x.draft for x in drafts)),
        log_p,
        np.concatenate([x.chance for x in drafts]),
        np.cumsum([len(x.chance) for x in drafts])[:-1],
        tree,
    )


def possible(drafts):
    """Drafts whose probability is not zero."""
    found = drafts.chance > 0
    draft = jax.tree.map(lambda x: np.asarray(x)[found], drafts.draft)
    return replace(drafts, draft=draft, chance=drafts.chance[found])


def random_pairs(count, vocab_size, depth, zeros=0.0):
    """Independent random targets and drafters."""
    return [
        (
            Conditionals.random(vocab_size, depth + 1, seed, zeros=zeros),
            Conditionals.random(vocab_size, depth, 1000 + seed, zeros=zeros),
        )
        for seed in range(count)
    ]


ROWS = 20_000
NOISE = jax.jit(draw_noise, static_argnums=(2, 3))


def draws(verifier, log_p, draft, tree, greedy=None, seed=0):
    """Verdicts for `ROWS` sequences with independent noise."""
    greedy = np.zeros(len(log_p), bool) if greedy is None else greedy
    log_p, draft, greedy = repeated((log_p, draft, greedy), ROWS)
    positions = np.tile(np.arange(tree.depth + 1), (ROWS, 1))
    keys = batch_keys(seed, ROWS)
    noise = NOISE(keys, positions, tree.size, log_p.shape[-1], greedy)
    return compiled(verifier, "verify", tree)(log_p, draft, noise)
