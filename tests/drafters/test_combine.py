"""Combined drafters forward what an engine asks of each drafter."""

import jax
import pytest

from jaxspec.drafters import (
    Adaptive,
    ConfidenceCutoff,
    DFlash,
    MergedDrafter,
    PromptLookup,
)
from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.tree import Tree
from tests.drafters.tiny import BLOCK, TARGET, target_params

BLOCK_DRAFTER = DFlash(BLOCK, TARGET)


@pytest.mark.slow
def test_both_drafters_of_a_merged_one_get_parameters_of_the_target():
    own, target = BLOCK_DRAFTER.init_params(jax.random.key(0)), target_params()
    chain = Tree.chain(2)
    merged = MergedDrafter(BLOCK_DRAFTER, PromptLookup(), chain, chain)
    first, second = merged.with_target_params((own, None), target)
    assert second is None and first.keys() > {"own", "embedding", "head"}
    again, _ = merged.with_target_params((first, second), target)
    assert again is first  # joined parameters stay as they are


def test_an_adaptive_drafter_checks_trees_as_its_drafter_does():
    adaptive = Adaptive(BLOCK_DRAFTER, ConfidenceCutoff(0.5))
    assert adaptive.max_depth == BLOCK_DRAFTER.max_depth
    with pytest.raises(ConfigError, match="shallower tree"):
        adaptive.check_tree(Tree.chain(30))
    assert not hasattr(Adaptive(PromptLookup(), ConfidenceCutoff(0.5)), "check_tree")
