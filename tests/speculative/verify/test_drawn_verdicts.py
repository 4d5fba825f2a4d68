"""Verdicts are samples of the outcome of their verifier."""

import jax
import numpy as np
import pytest

from jaxspec.speculative.verify import Block, Rejection
from tests.speculative.verify.lossless_cases import (
    EVERY_VERIFIER,
    ROWS,
    batch_of_drafts,
    draws,
    outcome_of,
    random_pairs,
    repeated,
)


def outcomes(verdict, size, vocab_size):
    """Counts of the last accepted node and of the token after it."""
    counts = np.zeros((size, vocab_size))
    np.add.at(counts, (verdict.path[:, -1], verdict.next_token), 1)
    return counts


def too_far(counts, expected):
    """Whether a chi-square is five of its standard deviations above its mean."""
    ever = expected > 0
    if counts[~ever].any():
        return True
    chi_square = (np.square(counts - expected)[ever] / expected[ever]).sum()
    freedom = ever.sum() - 1
    return chi_square > freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "verifier, tree", [(Rejection(), "0,1,00"), (Block(), "chain-2")], ids=str
)
def test_verify_samples_from_the_distribution_of_a_draft(verifier, tree):
    every = batch_of_drafts(random_pairs(6, 3, 2), tree, "without_replacement")
    tree = every.tree
    stop, final = outcome_of(verifier, every.log_p, every.draft, tree)
    at = np.argmax(stop.min(-1))  # a draft that may end at any of its nodes
    log_p, draft = jax.tree.map(lambda x: x[at : at + 1], (every.log_p, every.draft))
    for seed in (0, 1):
        verdict = draws(verifier, log_p, draft, tree, seed=seed)
        counts = outcomes(verdict, tree.size, 3)
        assert not too_far(counts, ROWS * stop[at, :, None] * final[at])
    # The same bound detects a target that is a little sharper.
    stop, final = outcome_of(verifier, 1.2 * every.log_p, every.draft, tree)
    assert too_far(counts, ROWS * stop[at, :, None] * final[at])

    tokens, count = map(np.asarray, verdict.emitted(draft))
    for d in range(tree.depth):
        kept = count > d + 1
        nodes = np.asarray(verdict.path)[kept, d + 1]
        np.testing.assert_array_equal(tokens[kept, d], draft.tokens[0, nodes])
    last = tokens[np.arange(ROWS), count - 1]
    np.testing.assert_array_equal(last, verdict.next_token)


@EVERY_VERIFIER
def test_verify_samples_from_the_distribution_of_each_sequence(
    verifier, selection, tree
):
    every = batch_of_drafts(random_pairs(6, 3, 2), tree, selection)
    verdict = draws(verifier, every.log_p, every.draft, every.tree)
    counts = outcomes(verdict, every.tree.size, 3)

    def deviation(log_p):
        stop, final = outcome_of(verifier, log_p, every.draft, every.tree)
        chance = repeated(stop[:, :, None] * final, ROWS)
        spread = np.sqrt((chance * (1 - chance)).sum(0))
        return np.abs(counts - chance.sum(0)) / np.maximum(spread, 1e-9)

    assert (deviation(every.log_p) < 5).all()
    assert (deviation(1.5 * every.log_p) > 5).any()
