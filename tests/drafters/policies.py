"""Adaptive policies, and drafts that they shorten."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.combine.adaptive import (
    Adaptive,
    ConfidenceCutoff,
    EntropyCutoff,
    LengthController,
)
from jaxspec.speculative.draft import DraftContext, InitContext
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Coupled, GreedySet, KSeq, Rejection
from jaxspec.testing.drafts import Conditionals, all_drafts

VOCAB = 4
P, Q = (Conditionals.random(VOCAB, 4, seed) for seed in (1, 4))
CHAIN, BUSHY = Tree.chain(3), Tree.named("0,1,00,01,000")


@dataclass(frozen=True)
class FixedDraft:
    """Drafter whose parameters are its draft."""

    def init(self, params, ctx):
        return ()

    def propose(self, params, state, ctx):
        return params, state

    def observe(self, params, state, result):
        return state


def draft_context(rows, tree, selection="coupled"):
    """Context of a first round."""
    zeros = jnp.zeros(rows, jnp.int32)
    return DraftContext(
        root=zeros,
        tokens=zeros[:, None],
        position=zeros,
        index=zeros,
        noise=jnp.zeros((rows, tree.depth + 1, VOCAB)),
        keys=batch_keys(0, rows),
        sampling=Sampling.create(rows),
        tree=tree,
        selection=selection,
    )


def nested(drafter, *policies):
    """Wraps a drafter in several policies."""
    for policy in policies:
        drafter = Adaptive(drafter, policy)
    return drafter


@partial(jax.jit, static_argnums=(1, 2))
def _cut(draft, tree, policies):
    drafter, rows = nested(FixedDraft(), *policies), draft.tokens.shape[0]
    state = drafter.init(draft, InitContext(None, None, None, tree, rows, 0))
    return drafter.propose(draft, state, draft_context(rows, tree))[0]


def cut(draft, tree, *policies):
    """Draft after the first round of some policies."""
    return _cut(draft, tree, policies)


def with_confidence(draft, tree, seed=0):
    """Adds predicted acceptance that depends on the tokens of a node and its parent."""
    table = np.random.default_rng(seed).random((tree.depth + 1, VOCAB, VOCAB))
    shape = draft.topology(tree)
    depths = np.broadcast_to(shape.depths, draft.tokens.shape)
    confidence = table[depths, shape.gather_parents(draft.tokens), draft.tokens]
    return replace(draft, confidence=jnp.asarray(confidence, jnp.float32))


def drafts_of(verifier, tree):
    """All drafts of `Q` for a verifier, with predicted acceptance."""
    drafts = all_drafts(Q, tree, verifier.selection)
    return replace(drafts, draft=with_confidence(drafts.draft, tree))


def ids(x):
    """Short names of test parameters."""
    if isinstance(x, tuple):
        return "+".join(type(policy).__name__ for policy in x)
    return type(x).__name__


# Policies that use only ancestors, and policies that use the node's own token.
PAST = [
    (EntropyCutoff(1.0),),
    (ConfidenceCutoff(0.3),),
    (ConfidenceCutoff(0.5, "head"),),
    (LengthController(least=1, most=2),),
    (EntropyCutoff(1.2), ConfidenceCutoff(0.4, "head", least_length=2)),
]
DROPPING = [
    ConfidenceCutoff(0.3, keep_trigger=False, least_length=0),
    ConfidenceCutoff(0.1, keep_trigger=False),
    ConfidenceCutoff(0.5, "head", keep_trigger=False, least_length=0),
]
# Verifiers of samples, and verifiers of tokens chosen in any way.
DRAWN = [
    (Rejection(), CHAIN),
    (Rejection(), BUSHY),
    (Rejection("with_replacement"), BUSHY),
    (KSeq(), BUSHY),
    (GreedySet(), BUSHY),
    (Block(), CHAIN),
]
GIVEN = [(Coupled(), CHAIN), (Coupled(), BUSHY), (Rejection("top"), BUSHY)]
