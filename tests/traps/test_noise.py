"""Noise of all samples: extreme values, small probabilities, independence."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys, draw_noise, position_noise, private_keys
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.tree_drafting.select import private_noise
from jaxspec.speculative.trees.topology import static_topology
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.outcome import Outcome
from jaxspec.speculative.verify.outcome import sample_outcome as draw_from_law
from tests.speculative.verify.lossless_cases import (
    EVERY_VERIFIER,
    batch_of_drafts,
    compiled,
    random_pairs,
)
from tests.speculative.verify.noises import FixedNoise


@pytest.mark.variants(2)
@EVERY_VERIFIER
def test_extreme_noise_accepts_no_impossible_token(verifier, selection, tree):
    """All noise is on tokens and nodes of probability zero."""
    drafts = batch_of_drafts(random_pairs(6, 3, 2, zeros=0.4), tree, selection)
    draft, tree, rows = drafts.draft, drafts.tree, np.arange(len(drafts.chance))
    never = drafts.log_p == -np.inf  # [B, N, V]
    banned = np.zeros(draft.tokens.shape, bool)
    for n in range(1, tree.size):
        parent = tree.parents[n]
        banned[:, n] = never[rows, parent, draft.tokens[:, n]] | ~draft.valid[:, n]
    below = (tree.ancestors & banned[:, None, :]).any(-1)  # or above it
    assert below.any() and never.any()
    noise = draw_noise(
        batch_keys(0, len(rows)),
        jnp.tile(jnp.arange(tree.depth + 1), (len(rows), 1)),
        tree.size,
        3,
    )
    at_depth = np.stack(
        [never[:, tree.levels[d]].any(1) for d in range(tree.depth + 1)], axis=1
    )
    for size in (1e3, 1e30):
        worst = replace(
            noise,
            coupled=jnp.where(at_depth, size, noise.coupled),
            fresh=FixedNoise(jnp.where(at_depth, size, noise.coupled)),
            nodes=jnp.where(below, size, noise.nodes),
        )
        verdict = compiled(verifier, "verify", tree)(drafts.log_p, draft, worst)
        last = np.asarray(verdict.path[:, -1])
        assert not below[rows, last].any()
        assert not never[rows, last, np.asarray(verdict.next_token)].any()


def test_small_probabilities_have_their_frequency():
    """Both samples of a verdict, node and token, resolve a probability of 3e-5."""
    rows, rare, tree = 2_000_000, 3e-5, Tree.chain(1)

    @jax.jit
    def counts(keys):
        noise = draw_noise(keys, jnp.tile(jnp.arange(2), (rows, 1)), tree.size, 2)
        small = jnp.array([1 - rare, rare])
        outcome = Outcome(
            jnp.broadcast_to(small, (rows, 2)), jnp.broadcast_to(small, (rows, 2, 2))
        )
        verdict = draw_from_law(outcome, static_topology(tree), noise)
        return jnp.stack([verdict.accepted.sum(), verdict.next_token.sum()])

    found = np.asarray(counts(batch_keys(0, rows)))
    wanted = rare * rows  # 60; uniform numbers on a grid of 1e-4 would give 0 or 200
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted)).all(), found


def test_every_kind_of_sample_has_independent_noise():
    """Verifier, coupling and drafter have uncorrelated numbers."""
    vocab, size, keys = 2048, 3, batch_keys(5, 2)
    positions = 7 + jnp.arange(size)
    each = jnp.tile(positions, (2, 1))
    noise = draw_noise(keys, each, 4, vocab)
    nodes = [draw_noise(keys, each + i, vocab, 1).nodes for i in range(size)]
    sampling = Sampling.create(2)
    of_drafter = []
    for position in positions:
        ctx: Any = SimpleNamespace(
            keys=private_keys(keys, jnp.full(2, position)), sampling=sampling
        )
        of_drafter += [private_noise(ctx, depth, (vocab,)) for depth in range(size)]
    # [samples, V] of all sequences and positions.
    fresh = [noise.fresh.at(jnp.full(2, place)) for place in range(size)]
    drawn = [*noise.coupled.swapaxes(0, 1), *fresh]
    drawn = np.concatenate([*drawn, *nodes, *of_drafter])
    assert len(drawn) == 2 * (3 * size + size**2)
    between = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(between).max() < 6 / np.sqrt(vocab)
    # The control: the same position asked for twice is the same noise.
    again = position_noise(keys, each[:, 1:2], vocab)[:, 0]
    assert np.corrcoef(again[0], noise.coupled[0, 1])[0, 1] > 0.999
