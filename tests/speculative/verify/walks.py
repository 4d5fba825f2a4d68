"""Random rounds with filtered tokens, and a walk down a draft in plain Python."""

from collections import defaultdict
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree

CHAIN = Tree.chain(2)
FORK = Tree.from_paths([(0,), (1,), (0, 0), (0, 1)])


def sorted_neighbors(codebook):
    """All other tokens for each token, nearest first, lower id on ties."""
    codes = np.asarray(codebook, np.float64)
    return [
        sorted(
            (j for j in range(len(codes)) if j != i),
            key=lambda j, i=i: (np.linalg.norm(codes[i] - codes[j]), j),
        )
        for i in range(len(codes))
    ]


def relaxed_probability(p, x, near, *, k, delta=None, lam=None):
    """`p(x)` plus the mass of the neighbors within the budget, and their number."""
    budget = delta if lam is None else (lam - 1) * p[x]
    mass, fitting = 0.0, 0
    for y in near[x][:k]:
        if mass + p[y] > budget:
            break
        mass, fitting = mass + p[y], fitting + 1
    return p[x] + mass, fitting


def normalized(x, otherwise):
    total = sum(x)
    return [mass / total for mass in x] if total > 0 else otherwise


def walk(tree, tokens, valid, p_after, q_after, accept, reject):
    """Outcomes of a round with probabilities: `{(accepted..., next): probability}`.

    `accept(p, q, x, node)` is the probability that a child is accepted, and
    `reject(p, q, x, node)` the residual of `p` after its rejection. `q` is None for
    children that were not sampled.
    """
    outcomes = defaultdict(float)

    def at(node, path, chance):
        p = list(p_after[node])
        q = None if q_after is None else list(q_after[node])
        for child in sorted(
            (n for n in range(1, tree.size) if tree.parents[n] == node),
            key=lambda n: tree.ranks[n],
        ):
            x = int(tokens[child])
            if not valid[child] or (q is not None and q[x] <= 0):
                continue
            taken = accept(p, q, x, child)
            at(child, (*path, x), chance * taken)
            chance *= 1 - taken
            p = reject(p, q, x, child)
            if q is not None:  # drawn without replacement
                q[x] = 0.0
                q = normalized(q, q)
        for y, mass in enumerate(p):
            outcomes[*path, y] += chance * mass

    at(0, (), 1.0)
    return outcomes


def random_distributions(rng, shape, zeros):
    """Distributions with zeros, as after top-k; the likeliest token always stays."""
    x = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])
    holes = (rng.random(shape) < zeros) & (x < x.max(-1, keepdims=True))
    x = np.where(holes, 0.0, x)
    return x / x.sum(-1, keepdims=True)


def random_round(tree, *, rows=30, vocab=7, seed=0, zeros=0.3, absent=0.15):
    """`log_p`, a draft sampled without replacement, and both distributions."""
    rng = np.random.default_rng(seed)
    p = random_distributions(rng, (rows, tree.size, vocab), zeros)
    q = random_distributions(rng, (rows, tree.size, vocab), 2 * zeros)
    tokens = np.zeros((rows, tree.size), np.int32)
    valid = rng.random((rows, tree.size)) >= absent
    valid[:, 0] = True
    for node in tree.internal:
        children = [n for n in range(1, tree.size) if tree.parents[n] == node]
        # Where q has fewer tokens than children, the last ones have probability 0.
        order = np.log(q[:, node] + 1e-30) + rng.gumbel(size=(rows, vocab))
        tokens[:, children] = np.argsort(-order, axis=1)[:, : len(children)]
        # A sample after a missing sample is invalid: docs/traps.md.
        valid[:, children] = np.cumprod(valid[:, children], axis=1)
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log(q)
    draft = Draft(
        jnp.asarray(tokens),
        jnp.asarray(valid),
        log_q=jnp.asarray(log_q[:, tree.internal]),
        selection="without_replacement",
    )
    return jnp.asarray(log_p), draft, p, q


def as_given(draft):
    """The same tokens, not sampled from a distribution."""
    return replace(draft, log_q=None, selection="top")


def outcomes_of(outcome, tree, tokens, row):
    """Outcome of a verifier in the form of `walk`."""
    outcomes = defaultdict(float)
    for n in range(tree.size):
        path = tokens[row, tree.paths[n][1 : tree.depths[n] + 1]]
        for y, mass in enumerate(np.asarray(outcome.final[row, n])):
            outcomes[*map(int, path), y] += float(outcome.stop[row, n]) * mass
    return outcomes


def assert_same_outcomes(found, wanted, atol=1e-9):
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-9)
    for outcome in wanted.keys() | found.keys():
        assert abs(wanted[outcome] - found[outcome]) < atol, outcome


def assert_follows(outcome, tree, draft, p, q, accept, reject, atol=1e-9):
    """Compares each sequence of an outcome with the walk."""
    tokens, valid = np.asarray(draft.tokens), np.asarray(draft.valid)
    for row in range(len(tokens)):
        own = None if draft.log_q is None else q[row]
        wanted = walk(tree, tokens[row], valid[row], p[row], own, accept, reject)
        assert_same_outcomes(outcomes_of(outcome, tree, tokens, row), wanted, atol)


def codebook(vocab=7, seed=1):
    return np.random.default_rng(seed).normal(size=(vocab, 2))
