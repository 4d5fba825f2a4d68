"""Committing the longest accepted prefix, as SJD-PAC's sampler does, is not exact."""

import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Rejection
from jaxspec.testing import all_drafts, assert_lossless, distortion
from jaxspec.testing.longest_prefix import LongestPrefix
from tests.speculative.verify.lossless_cases import batch_of_drafts, random_pairs

TREE, SELECTION = Tree.named("0,1,00,10"), "without_replacement"


@pytest.fixture(scope="module")
def pairs():
    return [
        (p, all_drafts(q, TREE, SELECTION)) for p, q in random_pairs(12, 4, TREE.depth)
    ]


def test_enumeration_catches_the_longest_prefix_and_not_the_first_sibling(pairs):
    first = [distortion(Rejection(), p, drafts) for p, drafts in pairs]
    longest = [distortion(LongestPrefix(), p, drafts) for p, drafts in pairs]
    assert max(first) < 1e-6
    # The figures of docs/verification.md.
    assert np.mean(longest) == pytest.approx(0.020, abs=5e-4)
    assert max(longest) == pytest.approx(0.045, abs=5e-4)
    p, drafts = pairs[int(np.argmax(longest))]
    with pytest.raises(AssertionError, match="LongestPrefix.outcome is biased"):
        assert_lossless(LongestPrefix(), p, drafts, draws=0)


def test_the_bias_buys_longer_prefixes():
    batch = batch_of_drafts(random_pairs(12, 4, TREE.depth), TREE, SELECTION)
    gain = batch.kept(LongestPrefix()) - batch.kept(Rejection())
    assert (gain > -1e-6).all() and gain.mean() > 0.01


def test_on_a_chain_both_readings_are_one():
    tree = Tree.named("chain-2")
    for p, q in random_pairs(4, 4, tree.depth):
        drafts = all_drafts(q, tree, SELECTION)
        assert distortion(LongestPrefix(), p, drafts) < 1e-6


def test_trees_that_cannot_be_enumerated_are_refused(pairs):
    p, drafts = pairs[0]
    tree = Tree.chain(20)
    with pytest.raises(ConfigError, match="at most 13 nodes"):
        LongestPrefix().outcome(np.zeros((1, 21, 4)), drafts.draft, tree)
