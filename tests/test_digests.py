"""Tokens of a grid of settings, as recorded: drafters, verifiers, trees, batches.

`python -m tests.test_digests` records them again, after an intended change.
"""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, BestFirst, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import (
    Annealed,
    Block,
    Coupled,
    CoupledRelaxed,
    GreedySet,
    Grouped,
    KSeq,
    Lantern,
    Rejection,
    Typical,
)
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.tiny import (
    FEATURES,
    TABLES,
    TARGET,
    VOCAB,
    feature_params,
    table_params,
    target_params,
)

RECORDED = Path(__file__).with_name("digests.json")
LENGTH = 10
CODES = jax.random.normal(jax.random.key(5), (VOCAB, 3))
NEIGHBORS = {"neighbors": neighbor_table(np.asarray(CODES), 3)}
VERIFIERS = {
    "coupled": (Coupled(), None),
    "rejection": (Rejection(), None),
    "block": (Block(), None),
    "kseq": (KSeq(), None),
    "greedy set": (GreedySet(), None),
    "lantern": (Lantern(k=3, delta=0.4), NEIGHBORS),
    "lantern++": (Lantern(k=3, lam=3.0), NEIGHBORS),
    "coupled, relaxed": (CoupledRelaxed(k=3, budget=0.3), NEIGHBORS),
    "grouped": (Grouped(group=3), {"embedding": CODES}),
    "annealed": (Annealed(delta=0.8), None),
    "typical": (Typical(), None),
}
TREES = {
    "chain": Tree.chain(4),
    "static": Tree.named("0,1,2,00,01,10,000,001"),
    "beam": Beam(9, 3, beam=4, branch=3),
    "best first": BestFirst(8, 3),
    "stochastic beam": StochasticBeam(3, 3),
}
TABLE = {"table": jax.random.normal(jax.random.key(7), (1, VOCAB, VOCAB))}


def settings(rows):
    """Rows of unequal temperature and guidance."""
    return Sampling.create(
        rows,
        temperature=np.resize([1.0, 0.0, 0.7], rows),
        cfg_scale=np.resize([2.0, 1.5, 3.0], rows),
        top_k=np.resize([0, 4, 0], rows),
    )


def digest(engine, rows, params, own, for_verifier=None):
    """Digest of the tokens and the lengths of accepted paths, or "refused"."""
    prompt = jnp.arange(rows) % 3
    if engine.target.vocab_size == VOCAB:
        prompt = jnp.stack([prompt, prompt + 1, jnp.full_like(prompt, -1)], axis=1)
    run = jax.jit(engine.generate)
    variables = Variables(params, own, for_verifier)
    options = {"sampling": settings(rows), "keys": batch_keys(4, rows)}
    try:
        out = run(variables, prompt, **options)
    except ConfigError:
        return "refused"
    parts = [np.asarray(out.tokens, np.int32), np.asarray(out.stats.accepted, np.int32)]
    return hashlib.sha256(b"".join(x.tobytes() for x in parts)).hexdigest()[:16]


def grid_of_drafters():
    """Every drafter on its tree, verified by `coupled`, one and three rows."""
    for name in (*TABLES, *FEATURES):
        for rows in (1, 3):
            yield f"{name} / coupled / own tree / {rows}", (name, rows)


def grid_of_verifiers():
    """Every verifier on every tree; some of them are refused."""
    for verifier in VERIFIERS:
        for tree in TREES:
            for rows in (1, 3):
                yield f"table / {verifier} / {tree} / {rows}", (verifier, tree, rows)


def digest_of_drafter(name, rows):
    text = name in TABLES
    drafter, tree = (TABLES if text else FEATURES)[name]
    own = (table_params if text else feature_params)(name)
    feature_layers = getattr(drafter, "feature_layers", ())
    target = (
        toy_target(VOCAB, 2)
        if text
        else Transformer(TARGET).as_target(feature_layers=feature_layers)
    )
    engine = Engine(target, LENGTH, drafter, tree)
    return digest(engine, rows, toy_params(VOCAB, 60) if text else target_params(), own)


def digest_of_verifier(name, tree, rows):
    verifier, arrays = VERIFIERS[name]
    engine = Engine(toy_target(VOCAB, 2), LENGTH, TableDrafter(), TREES[tree], verifier)
    return digest(engine, rows, toy_params(VOCAB, 60), TABLE, arrays)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "key"), list(grid_of_drafters()))
def test_tokens_of_drafters_are_those_recorded(case, key):
    assert digest_of_drafter(*key) == json.loads(RECORDED.read_text("utf-8"))[case]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "key"), list(grid_of_verifiers()))
def test_tokens_of_verifiers_are_those_recorded(case, key):
    assert digest_of_verifier(*key) == json.loads(RECORDED.read_text("utf-8"))[case]


def record():
    """Writes all digests."""
    found = {}
    for make, grid in (
        (digest_of_drafter, list(grid_of_drafters())),
        (digest_of_verifier, list(grid_of_verifiers())),
    ):
        for case, key in grid:
            found[case] = make(*key)
            print(case, found[case], flush=True)
    text = json.dumps(found, indent=1, sort_keys=True)
    RECORDED.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    record()
