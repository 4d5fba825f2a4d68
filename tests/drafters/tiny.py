"""Every drafter, on a toy target or on a transformer of three small layers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import TransformerConfig
from jaxspec.drafters import DynamicExit, Falcon, FalconConfig
from jaxspec.drafters.combine.jacobi_mix import JacobiMix
from jaxspec.drafters.combine.merged import MergedDrafter
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.draft_model.drafter import DraftModel, early_exit
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.drafters.inline_blocks.drafter import ppd_blocks, tidar, with_extra_tokens
from jaxspec.drafters.kangaroo.drafter import Kangaroo, KangarooConfig
from jaxspec.drafters.masked.deer import Deer
from jaxspec.drafters.masked.diffuspec import DiffuSpec
from jaxspec.drafters.medusa.drafter import Medusa
from jaxspec.drafters.medusa.network import MedusaConfig
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.drafters.training_free.lookahead import Lookahead
from jaxspec.drafters.training_free.ngram import NgramTable
from jaxspec.drafters.training_free.prompt_lookup import PromptLookup
from jaxspec.drafters.training_free.recycling import TokenRecycling
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.trees.dynamic import Beam, BestFirst
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.toy import toy_params, toy_target
from tests.models.tiny import random_params

VOCAB = 6
BUSHY = Tree.named("0,1,2,00,01,10,000")
BOTH = MergedDrafter(PromptLookup(), Jacobi(VOCAB), Tree.chain(3), Tree.named("0,1,00"))
AHEAD = Lookahead(VOCAB, 4, 5, 3)


def by_last_token(params, prompt, tokens, sampling):
    """Denoiser whose logits are a table lookup."""
    return params[tokens]


LATTICE = DiffuSpec(
    by_last_token, VOCAB, NgramTable(VOCAB, buckets=64, width=4), most=3
)
# Drafters that read no features, on the toy target, with their trees.
TABLES = {
    "jacobi, uniform": (Jacobi(VOCAB, "uniform"), BUSHY),
    "jacobi, last": (Jacobi(VOCAB), BUSHY),
    "jacobi, repeat": (Jacobi(VOCAB, "repeat"), Tree.chain(5)),
    "jacobi, grown": (Jacobi(VOCAB), Beam(9, 3, beam=4, branch=3)),
    "recycling": (TokenRecycling(VOCAB, 4), BUSHY),
    "recycling, by row": (TokenRecycling(VOCAB, 4, False), BestFirst(8, 3)),
    "prompt lookup": (PromptLookup(), Tree.named("0,1,00,10,000")),
    "n-grams": (NgramTable(VOCAB, buckets=64, width=4), BUSHY),
    "n-grams of a grid": (NgramTable(VOCAB, (1, 4), 64, 4), BestFirst(8, 3)),
    "union": (BOTH, BOTH.tree),
    "lookahead": (AHEAD, AHEAD.tree),
    "small model": (DraftModel(toy_target(VOCAB)), BUSHY),
    "small model, mixed": (JacobiMix(DraftModel(toy_target(VOCAB)), VOCAB), BUSHY),
    "small model, guided": (DraftModel(toy_target(VOCAB, 2)), Beam(9, 3, 4, 3)),
    "small model, best first": (DraftModel(toy_target(VOCAB)), BestFirst(8, 3)),
    "masks": (Deer(toy_target(VOCAB, 2), 3, VOCAB), BUSHY),
    "masks, shifted": (Deer(toy_target(VOCAB), 3, VOCAB, 1), BUSHY),
    "lattice": (LATTICE, Beam(9, 3, beam=3, branch=3)),
}


def table_params(name):
    """Parameters of one of `TABLES`."""
    if name == "lattice":
        shape = VOCAB + 1, VOCAB
        table = jax.random.normal(jax.random.key(3), shape, jnp.float32)
        return {"model": table, "counts": None}
    models = DraftModel, Deer
    drafter, _ = TABLES[name]
    drafter = drafter.drafter if isinstance(drafter, JacobiMix) else drafter
    return toy_params(VOCAB, 60, seed=1) if isinstance(drafter, models) else None


TARGET = TransformerConfig(
    vocab_size=19, layers=3, width=32, heads=2, grid=4, classes=3, extra_tokens=3
)
SMALL = replace(TARGET, layers=1, width=16, extra_tokens=0)
SMALL_THREE = replace(SMALL, layers=3)
EAGLE = EagleConfig(1, 32, 2, ffn_width=48, feature_layers=(2,))
EAGLE_3 = replace(EAGLE, version=3, feature_layers=(0, 1, 2))
NARROW = EagleConfig(
    3, 16, 2, ffn_width=24, feature_layers=(0, 1, 2), draft_vocab=12, own_embedding=True
)
HEADS = MedusaConfig(4, 32)
HYDRA = replace(HEADS, sequential=True)
HYDRA_PLUS = replace(HYDRA, prefix_heads=2, prefix_ffn_width=32)
BLOCK = DFlashConfig(4, 2, 32, 2, ffn_width=48, feature_layers=(0, 2), markov_rank=6)
GROUPED = replace(BLOCK, kv_heads=1, causal=False, markov_rank=0)
FALCON = FalconConfig(2, 32, 2, 48)
TREE = Tree.named("0,1,2,00,01,10,000,0000")
BEAM, BEST = Beam(9, 4, beam=4, branch=3), BestFirst(8, 4)

# Drafters that read a transformer's features, or are one, with their trees.
FEATURES = {
    "eagle-1": (Eagle(EAGLE, TARGET), TREE),
    "eagle-2": (Eagle(EAGLE, TARGET), BEAM),
    "eagle-1, best first": (Eagle(EAGLE, TARGET), BEST),
    "eagle-3": (Eagle(EAGLE_3, TARGET), TREE),
    "eagle-3, trimmed": (Eagle(replace(EAGLE_3, draft_vocab=12), TARGET), TREE),
    "eagle-3, narrower": (Eagle(NARROW, TARGET), TREE),
    "medusa": (Medusa(HEADS, TARGET), TREE),
    "medusa, own outputs": (
        Medusa(replace(HEADS, own_output=True, blocks=2), TARGET),
        TREE,
    ),
    "hydra": (Medusa(HYDRA, TARGET), TREE),
    "hydra++": (Medusa(HYDRA_PLUS, TARGET), TREE),
    "block": (DFlash(BLOCK, TARGET), TREE),
    "block, refined": (DFlash(replace(BLOCK, refinements=2), TARGET), BEAM),
    "block, grouped heads": (DFlash(GROUPED, TARGET), BEST),
    "falcon": (Falcon(FALCON, TARGET), TREE),
    "falcon, blocks of 3": (
        Falcon(FalconConfig(3, 32, 2, 48), TARGET),
        BEAM,
    ),
    "kangaroo": (Kangaroo(KangarooConfig(2, 2), TARGET), TREE),
    "dynamic exit": (DynamicExit(TARGET, (1, 2)), TREE),
    "sub-networks": (
        DynamicExit(SMALL_THREE, (1, 3), verify_cost=9.0, cfg=False),
        BEAM,
    ),
    "early exit": (early_exit(TARGET, 2), TREE),
    "small transformer": (
        DraftModel(Transformer(SMALL).as_target(cfg=False)),
        TREE,
    ),
    "tidar": (tidar(TARGET, 4), Tree.chain(3)),
    "prompt tokens": (ppd_blocks(TARGET, 3), Tree.named("0,1,00")),
}


def target_params():
    """Parameters of a transformer of `TARGET`."""
    plain = random_params(replace(TARGET, extra_tokens=0))
    shape = 3, TARGET.width
    rows = 0.3 * jax.random.normal(jax.random.key(9), shape, jnp.float32)
    return with_extra_tokens(plain, rows)


def bound_params(drafter):
    """Random parameters of a trained drafter, joined with the target's."""

    rng = np.random.default_rng(6)

    def perturbed(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        noise = np.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)
        return x + noise

    init = jax.jit(drafter.init_params)
    params = jax.tree.map(perturbed, init(jax.random.key(5)))
    return drafter.with_target_params(params, target_params())


def feature_params(name):
    """Parameters of one of `FEATURES`, joined with the target's if it reads them."""
    drafter, _ = FEATURES[name]
    if hasattr(drafter, "with_target_params"):
        return bound_params(drafter)
    if name in ("dynamic exit", "early exit"):
        return target_params()
    small = {"sub-networks": SMALL_THREE, "small transformer": SMALL}
    return random_params(small[name]) if name in small else None
