"""Every verifier in the engine: distribution of tokens, independence of sequences."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import BestFirst, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import (
    Annealed,
    Block,
    Coupled,
    CoupledRelaxed,
    Entropic,
    GreedySet,
    Grouped,
    Judge,
    KSeq,
    Lantern,
    Rejection,
    Skipped,
    Typical,
)
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target
from tests.speculative.verify.first_tokens import exact_distribution, misfit

VOCAB, LENGTH = 5, 6
PARAMS = toy_params(VOCAB, 40)
TABLE = {"table": jax.random.normal(jax.random.key(1), (3, VOCAB, VOCAB))}
CODES = jax.random.normal(jax.random.key(2), (VOCAB, 2))
VERIFIER_PARAMS = {"neighbors": neighbor_table(CODES, 2), "embedding": CODES}
BUSHY = Tree.named("0,1,00,01,10")


def first_is_large(_, features):
    return features[..., 0]


def kind(x):
    return type(x).__name__


LOSSLESS = [
    (Coupled(), BUSHY),
    (Rejection(), BUSHY),
    (Rejection(), StochasticBeam(2, 2)),
    (Rejection(), BestFirst(5, 2)),
    (Rejection("with_replacement"), BUSHY),
    (Rejection("top"), BUSHY),
    (KSeq(), BUSHY),
    (GreedySet(), BUSHY),
    (Block(), Tree.chain(3)),
]
LOSSY = [
    (Lantern(2, delta=0.2), BUSHY),
    (Lantern(2, lam=3.0, residual="optimal"), BUSHY),
    (CoupledRelaxed(2, budget=0.3), BUSHY),
    (Grouped(group=3, distance=9.0, gap=0.5), BUSHY),
    (Annealed(1.5), BUSHY),
    (Entropic(3.0), BUSHY),
    (Skipped(0.4), BUSHY),
    (Typical(), BUSHY),
    (Judge(first_is_large), BUSHY),
]


@lru_cache
def runner(verifier, tree, branches=1):
    engine = Engine(
        toy_target(VOCAB, branches),
        LENGTH,
        TableDrafter(),
        tree,
        verifier,
        ("temperature", "top_k"),
    )

    def run(prompt, sampling, keys):
        return engine.generate(
            Variables(PARAMS, TABLE, VERIFIER_PARAMS),
            prompt,
            sampling=sampling,
            keys=keys,
        )

    return jax.jit(run)


@lru_cache
def plain(branches=1):
    engine = Engine(toy_target(VOCAB, branches), LENGTH, order=("temperature", "top_k"))
    variables = Variables(PARAMS)
    return jax.jit(
        lambda prompt, sampling, keys: engine.generate(
            variables, prompt, sampling=sampling, keys=keys
        )
    )


ROWS, HALF = 6000, 3000
FILTERS = np.repeat([0, 3], HALF)


@lru_cache
def sampled(verifier, tree):
    """Batch from prompt 0; its second half has filters."""
    prompt = jnp.zeros(ROWS, jnp.int32)
    sampling = Sampling.create(ROWS, top_k=FILTERS)
    return runner(verifier, tree)(prompt, sampling, batch_keys(3, ROWS))


@pytest.mark.variants(1)
@pytest.mark.parametrize(("verifier", "tree"), LOSSLESS, ids=kind)
def test_lossless_verifiers_keep_the_distribution_of_the_first_three_tokens(
    verifier, tree
):
    out = sampled(verifier, tree)
    tokens = np.asarray(out.tokens)
    assert misfit(tokens[:HALF], exact_distribution(PARAMS)) < 5
    assert misfit(tokens[HALF:], exact_distribution(PARAMS, top_k=3)) < 5
    assert out.stats.hits.sum() > 0 and bool(out.finite.all())


def test_the_same_measure_detects_a_lossy_verifier():
    tokens = np.asarray(sampled(*LOSSY[0]).tokens)
    assert misfit(tokens[:HALF], exact_distribution(PARAMS)) > 10


@pytest.mark.variants(1)
@pytest.mark.parametrize(("verifier", "tree"), [*LOSSLESS, *LOSSY], ids=kind)
def test_a_sequence_does_not_depend_on_its_batch_or_its_slot(verifier, tree):
    order = np.random.default_rng(0).permutation(ROWS)
    order[order >= 5000] = 0  # a thousand are replaced by copies of sequence 0
    sampling = Sampling.create(ROWS, top_k=FILTERS[order])
    prompt, keys = jnp.zeros(ROWS, jnp.int32), batch_keys(3, ROWS)[order]
    moved = runner(verifier, tree)(prompt, sampling, keys).tokens
    np.testing.assert_array_equal(sampled(verifier, tree).tokens[order], moved)


@pytest.mark.variants(1)
@pytest.mark.parametrize(("verifier", "tree"), LOSSLESS, ids=kind)
def test_greedy_sequences_are_greedy_decoding_beside_sampled_ones(verifier, tree):
    greedy = np.arange(ROWS) % 3 == 0
    sampling = Sampling.create(ROWS, temperature=np.where(greedy, 0.0, 1.0))
    prompt, keys = jnp.arange(ROWS) % VOCAB, batch_keys(0, ROWS)
    wanted = plain()(prompt, sampling, keys).tokens
    out = runner(verifier, tree)(prompt, sampling, keys).tokens
    np.testing.assert_array_equal(out[greedy], wanted[greedy])


@pytest.mark.parametrize("verifier", [r for r, _ in LOSSY], ids=kind)
def test_lossy_verifiers_are_declared_lossy_by_their_type(verifier):
    assert not verifier.lossless
    for exact, _ in LOSSLESS:
        assert exact.lossless and type(exact) is not type(verifier)


def test_a_missing_neighbor_table_raises_a_clear_error():
    engine = Engine(toy_target(VOCAB), 3, TableDrafter(), BUSHY, Lantern(2, delta=0.1))
    with pytest.raises(ConfigError, match="neighbor_table"):
        engine.generate(
            Variables(PARAMS, TABLE),
            jnp.zeros(1, jnp.int32),
            sampling=Sampling.create(1),
            keys=batch_keys(0, 1),
        )


def test_a_drafter_of_another_selection_is_refused_before_the_first_round():
    engine = Engine(
        toy_target(VOCAB), 3, TableDrafter(), BUSHY, KSeq(), selection="coupled"
    )
    with pytest.raises(ConfigError, match="KSeq needs candidates chosen with_repl"):
        engine.generate(
            Variables(PARAMS, TABLE),
            jnp.zeros(1, jnp.int32),
            sampling=Sampling.create(1),
            keys=batch_keys(0, 1),
        )


def test_nan_logits_are_reported_by_verifiers_that_sample():
    broken = jax.tree.map(lambda x: x * jnp.nan, PARAMS)
    engine = Engine(toy_target(VOCAB), 4, TableDrafter(), BUSHY, Rejection())
    prompt, keys = jnp.zeros(2, jnp.int32), batch_keys(0, 2)
    run = jax.jit(engine.generate)
    assert not run(
        Variables(broken, TABLE), prompt, sampling=Sampling.create(2), keys=keys
    ).finite.any()
    assert run(
        Variables(PARAMS, TABLE), prompt, sampling=Sampling.create(2), keys=keys
    ).finite.all()
