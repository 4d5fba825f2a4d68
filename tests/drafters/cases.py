"""Every drafter, on small targets: static pieces, trees and random parameters."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp

from jaxspec.config import (
    AdapterConfig,
    BlockDiffusionConfig,
    FeatureHeadConfig,
    ParallelHeadsConfig,
    SemiAutoregressiveConfig,
    TransformerConfig,
)
from jaxspec.drafters.block_diffusion import BlockDiffusion
from jaxspec.drafters.dynamic_exit import DynamicExit
from jaxspec.drafters.falcon import Falcon
from jaxspec.drafters.feature_head import FeatureHead
from jaxspec.drafters.jacobi import Jacobi
from jaxspec.drafters.kangaroo import Kangaroo
from jaxspec.drafters.lattice import Lattice
from jaxspec.drafters.lookahead import Lookahead
from jaxspec.drafters.mask_drafter import MaskDrafter
from jaxspec.drafters.ngram import NgramTable
from jaxspec.drafters.parallel_heads import ParallelHeads
from jaxspec.drafters.prompt_lookup import PromptLookup
from jaxspec.drafters.recycling import TokenRecycling
from jaxspec.drafters.riding_blocks import (
    prompt_tokens,
    tidar,
    with_extra_tokens,
)
from jaxspec.drafters.small_model import SmallModel, early_exit
from jaxspec.drafters.union import Union
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.envelopes import Beam, BestFirst
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.tree import Tree
from jaxspec.testing.toy import toy_params, toy_target
from tests.models.random_params import random_params

VOCAB, LENGTH, ROWS = 6, 24, 3
PARAMS, OTHER = toy_params(VOCAB, 60), toy_params(VOCAB, 60, seed=1)
PROMPT = jnp.array([[1, 2, 3, 1], [4, 4, -1, -1], [0, -1, -1, -1]])
BUSHY = named_tree("0,1,2,00,01,10,000")
BOTH = Union(PromptLookup(), Jacobi(VOCAB), Tree.chain(3), named_tree("0,1,00"))
AHEAD = Lookahead(VOCAB, 4, 5, 3)
# Drafters that know tokens and scores alone, on the toy target.
TABLES = {
    "jacobi, uniform": (Jacobi(VOCAB, "uniform"), BUSHY, None),
    "jacobi, last": (Jacobi(VOCAB), BUSHY, None),
    "jacobi, repeat": (Jacobi(VOCAB, "repeat"), Tree.chain(5), None),
    "jacobi, grown": (Jacobi(VOCAB), Beam(9, 3, beam=4, branch=3), None),
    "recycling": (TokenRecycling(VOCAB, 4), BUSHY, None),
    "recycling, by row": (TokenRecycling(VOCAB, 4, False), BestFirst(8, 3), None),
    "prompt lookup": (PromptLookup(), named_tree("0,1,00,10,000"), None),
    "n-grams": (NgramTable(VOCAB, buckets=64, width=4), BUSHY, None),
    "n-grams of a grid": (NgramTable(VOCAB, (1, 4), 64, 4), BestFirst(8, 3), None),
    "union": (BOTH, BOTH.tree, None),
    "lookahead": (AHEAD, AHEAD.tree, None),
    "small model": (SmallModel(toy_target(VOCAB)), BUSHY, OTHER),
    "small model, guided": (
        SmallModel(toy_target(VOCAB, 2)),
        Beam(9, 3, beam=4, branch=3),
        OTHER,
    ),
    "small model, best first": (SmallModel(toy_target(VOCAB)), BestFirst(8, 3), OTHER),
    "masks": (MaskDrafter(toy_target(VOCAB, 2), 3, VOCAB), BUSHY, OTHER),
    "masks, shifted": (MaskDrafter(toy_target(VOCAB), 3, VOCAB, 1), BUSHY, OTHER),
    "lattice": (
        Lattice(
            lambda params, prompt, tokens, sampling: params[tokens],
            VOCAB,
            NgramTable(VOCAB, buckets=64, width=4),
            most=3,
        ),
        Beam(9, 3, beam=3, branch=3),
        {
            "model": jax.random.normal(jax.random.key(3), (VOCAB + 1, VOCAB)),
            "counts": None,
        },
    ),
}

# Drafters that read a transformer's features, or are one.

TARGET = TransformerConfig(
    vocab_size=19, layers=3, width=32, heads=2, grid=4, classes=3, extra_tokens=3
)
CLASSES = jnp.array([0, 2, 1])
SMALL = replace(TARGET, layers=1, width=16, extra_tokens=0)
SMALL_THREE = replace(SMALL, layers=3)
EAGLE = FeatureHeadConfig(1, 32, 2, ffn_width=48, taps=(2,))
HEADS = ParallelHeadsConfig(4, 32)
BLOCK = BlockDiffusionConfig(4, 2, 32, 2, ffn_width=48, taps=(0, 2), markov_rank=6)
TREE = named_tree("0,1,2,00,01,10,000,0000")


@lru_cache
def target_params():
    plain = random_params(replace(TARGET, extra_tokens=0))
    rows = 0.3 * jax.random.normal(jax.random.key(9), (3, TARGET.width))
    return with_extra_tokens(plain, rows)


def own(drafter):
    """Random parameters of a drafter, joined with the target's."""
    made = drafter.init_params(jax.random.key(5))
    floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    made = jax.tree.map(
        lambda x: (
            x + 0.1 * jax.random.normal(jax.random.key(6), x.shape) if floats(x) else x
        ),
        made,
    )
    return drafter.bind(made, target_params())


def feature_drafters():
    three = replace(EAGLE, version=3, taps=(0, 1, 2))
    refined = replace(BLOCK, refinements=2)
    grouped = replace(BLOCK, kv_heads=1, causal=False, markov_rank=0)
    heads = {
        "medusa": HEADS,
        "medusa, own outputs": replace(HEADS, own_output=True, blocks=2),
        "hydra": replace(HEADS, sequential=True),
        "hydra++": replace(HEADS, sequential=True, prefix_heads=2, prefix_ffn_width=32),
    }
    found = {
        "eagle-1": (FeatureHead(EAGLE, TARGET), TREE),
        "eagle-2": (FeatureHead(EAGLE, TARGET), Beam(9, 4, beam=4, branch=3)),
        "eagle-1, best first": (FeatureHead(EAGLE, TARGET), BestFirst(8, 4)),
        "eagle-3": (FeatureHead(three, TARGET), TREE),
        "eagle-3, trimmed": (FeatureHead(replace(three, draft_vocab=12), TARGET), TREE),
        **{name: (ParallelHeads(c, TARGET), TREE) for name, c in heads.items()},
        "block": (BlockDiffusion(BLOCK, TARGET), TREE),
        "block, refined": (BlockDiffusion(refined, TARGET), Beam(9, 4, 4, 3)),
        "block, grouped heads": (BlockDiffusion(grouped, TARGET), BestFirst(8, 4)),
    }
    found = {
        name: (drafter, tree, own(drafter)) for name, (drafter, tree) in found.items()
    }
    falcon = Falcon(SemiAutoregressiveConfig(2, 32, 2, 48), TARGET)
    found["falcon"] = falcon, TREE, own(falcon)
    three = Falcon(SemiAutoregressiveConfig(3, 32, 2, 48), TARGET)
    found["falcon, blocks of 3"] = three, Beam(9, 4, 4, 3), own(three)
    kangaroo = Kangaroo(AdapterConfig(2, 2), TARGET)
    found["kangaroo"] = kangaroo, TREE, own(kangaroo)
    found["dynamic exit"] = DynamicExit(TARGET, (1, 2)), TREE, target_params()
    sub = DynamicExit(SMALL_THREE, (1, 3), verify_cost=9.0, guided=False)
    found["sub-networks"] = sub, Beam(9, 4, 4, 3), random_params(SMALL_THREE)
    found["early exit"] = early_exit(TARGET, 2), TREE, target_params()
    small = SmallModel(make_target(Transformer(SMALL), guided=False))
    found["small transformer"] = small, TREE, random_params(SMALL)
    riding = Tree.chain(3)
    found["tidar"] = tidar(TARGET, 4), riding, None
    bushy = named_tree("0,1,00")
    found["prompt tokens"] = prompt_tokens(TARGET, 3), bushy, None
    return found


NAMES = [
    "eagle-1",
    "eagle-2",
    "eagle-1, best first",
    "eagle-3",
    "eagle-3, trimmed",
    "medusa",
    "medusa, own outputs",
    "hydra",
    "hydra++",
    "block",
    "block, refined",
    "block, grouped heads",
    "falcon",
    "falcon, blocks of 3",
    "kangaroo",
    "dynamic exit",
    "sub-networks",
    "early exit",
    "small transformer",
    "tidar",
    "prompt tokens",
]

# Variants of others here; their tests are slow.
LONG = (
    "eagle-1",
    "eagle-2",
    "eagle-1, best first",
    "eagle-3, trimmed",
    "medusa, own outputs",
    "hydra",
    "block, refined",
    "falcon, blocks of 3",
    "dynamic exit",
    "sub-networks",
)
