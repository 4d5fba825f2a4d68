"""Invalid drafts: unknown tokens, NaN probabilities, impossible parents.

An error of a drafter costs speed and nothing else. A node with an impossible value is
an invalid node: the target never reads it, no verifier accepts it, and the output
distribution stays exact.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.draft import ExtraQueries
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import (
    Annealed,
    Block,
    Coupled,
    CoupledRelaxed,
    GreedySet,
    Grouped,
    Judge,
    KSeq,
    Lantern,
    Rejection,
    Typical,
)
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.speculative.verify.outcome import sequential_siblings
from jaxspec.testing.drafts import Conditionals, all_drafts, sampled_drafts
from jaxspec.testing.enumeration import assert_lossless
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import NoisyOracle, toy_params, toy_target
from tests.models.tiny import random_params

MOST = np.iinfo(np.int32).max
FORK = Tree.named("0,1,00,01,10")
TINY = TransformerConfig(40, layers=2, width=32, heads=2, grid=4, classes=4)


# --- In the loop ---------------------------------------------------------------------


@dataclass(frozen=True)
class WithUnknownTokens:
    """Replaces the wrong tokens in the drafts of another drafter.

    The parameters are those of `NoisyOracle` and "junk", an int32 token. Every node
    without the future token of the target gets this token, and is marked as valid.
    """

    drafter: NoisyOracle

    def init(self, params: Any, start: Any) -> Any:
        """Initial state of the wrapped drafter."""
        return self.drafter.init(params, start)

    def propose(self, params: Any, state: Any, ctx: Any) -> Any:
        """Draft of the wrapped drafter, with unknown tokens in it."""
        draft, state = self.drafter.propose(params, state, ctx)
        future = ctx.index[:, None] - 1 + jnp.asarray(ctx.tree.depths)
        last = params["tokens"].shape[1] - 1
        truth = jnp.take_along_axis(params["tokens"], jnp.minimum(future, last), 1)
        wrong = (draft.tokens != truth) | (jnp.arange(ctx.tree.size) == 0)
        tokens = jnp.where(wrong, params["junk"], draft.tokens)
        return replace(draft, tokens=tokens, valid=jnp.ones_like(draft.valid)), state

    def observe(self, params: Any, state: Any, seen: Any) -> Any:
        """Returns the state unchanged."""
        return state


@lru_cache
def transformer():
    target, params = Transformer(TINY).as_target(), random_params(TINY)
    options = {
        "prompt": jnp.arange(3),
        "sampling": Sampling.create(temperature=[1.0, 0.0, 1.0], cfg_scale=2.0),
        "keys": batch_keys(0, 3),
    }
    plain = jax.jit(Engine(target, 16).generate)(Variables(params), **options)
    tree = Tree.named("0,1,2,00,01,000")
    engine = Engine(target, 16, WithUnknownTokens(NoisyOracle(40)), tree)
    return jax.jit(engine.generate), params, options, plain.tokens


@pytest.mark.variants(1)
@pytest.mark.parametrize("junk", [40, 1040, -1, -41, MOST, -MOST - 1])
def test_unknown_tokens_in_unaccepted_nodes_do_not_affect_their_sequence(junk):
    """The embedding of an unknown token is NaN, which a mask does not remove."""
    run, params, options, plain = transformer()
    drafter = {"tokens": plain, "spoil": 0.3, "junk": jnp.int32(junk)}
    out = run(Variables(params, drafter), **options)
    np.testing.assert_array_equal(out.tokens, plain)
    assert out.finite.all()
    assert (out.stats.calls < 14).all()  # correct tokens are still accepted


@dataclass(frozen=True)
class InvalidQueries(NoisyOracle):
    """Adds two extra queries with an invalid token or position."""

    num_extra_queries: int = 2

    def propose(self, params: Any, state: Any, ctx: Any) -> Any:
        """See `Drafter`."""
        draft, state = super().propose(params, state, ctx)
        rows, size = draft.tokens.shape
        mask = jnp.ones((rows, 2, size + 2), bool)
        full = lambda x: jnp.full((rows, 2), x, jnp.int32)  # noqa: E731
        extra = ExtraQueries(full(params["junk"]), full(params["position"]), mask)
        return replace(draft, extra=extra), state


@pytest.mark.variants(1)
@pytest.mark.parametrize(("junk", "position"), [(40, 3), (-1, -7), (MOST, MOST)])
def test_invalid_extra_queries_do_not_affect_other_queries(junk, position):
    _, params, options, plain = transformer()
    engine = Engine(
        Transformer(TINY).as_target(), 16, InvalidQueries(40), Tree.named("0,1,00")
    )
    drafter = {"tokens": plain, "spoil": 0.3}
    drafter |= {"junk": jnp.int32(junk), "position": jnp.int32(position)}
    out = _compiled(engine)(Variables(params, drafter), **options)
    np.testing.assert_array_equal(out.tokens, plain)
    assert out.finite.all()


@lru_cache
def _compiled(engine):
    return jax.jit(engine.generate)


VOCAB, LENGTH = 5, 8
PARAMS = toy_params(VOCAB, 60)
TABLE = jax.random.normal(jax.random.key(1), (3, VOCAB, VOCAB))
CODES = jax.random.normal(jax.random.key(2), (VOCAB, 2))
VERIFIER_PARAMS = {"neighbors": neighbor_table(CODES, 2), "embedding": CODES}


@dataclass(frozen=True)
class Mutated(TableDrafter):
    """Changes its drafts by `change(draft, key)`, with another key in each round."""

    change: Any = None

    def propose(self, params: Any, state: Any, ctx: Any) -> Any:
        """See `Drafter`."""
        draft, state = super().propose(params, state, ctx)
        return self.change(draft, ctx.keys[0]), state


def odd_parents(draft, key):
    """Cycles, parents after their children, negative and too large indices."""
    rows, size = draft.tokens.shape
    wild = jax.random.randint(key, (rows, size), -2, size + 2)
    huge = jnp.where(jax.random.bernoulli(key, 0.1, wild.shape), -MOST, wild)
    keep = jax.random.bernoulli(key, 0.5, wild.shape)
    return replace(draft, parents=jnp.where(keep, draft.parents, huge))


def odd_tokens(draft, key):
    """Random tokens, half of them unknown; all nodes are marked as valid."""
    tokens = jax.random.randint(key, draft.tokens.shape, -VOCAB, 2 * VOCAB)
    tokens = jnp.where(tokens == 2 * VOCAB - 1, MOST, tokens)
    return replace(draft, tokens=tokens, valid=jnp.ones_like(draft.valid))


def odd_probabilities(draft, key):
    """Some of the drafter's probabilities are NaN, infinite or above 1."""
    draws = jax.random.uniform(key, draft.log_q.shape)
    values = jnp.array([jnp.nan, jnp.inf, 9.0, -jnp.inf])
    odd = values[(draws * 1e4).astype(int) % 4]
    return replace(draft, log_q=jnp.where(draws < 0.1, odd, draft.log_q))


BEAM = Beam(9, 3, 4, 3)
SAMPLED = StochasticBeam(2, 3)


def first_feature(_, features):
    return features[..., 0]


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("verifier", "tree"),
    [
        (Coupled(), FORK),
        (Coupled(), BEAM),
        (Rejection(), FORK),
        (Rejection(), SAMPLED),
        (Rejection("with_replacement"), FORK),
        (Rejection("top"), BEAM),
        (KSeq(), FORK),
        (GreedySet(), FORK),
        (Block(), Tree.chain(3)),
        (Typical(), FORK),
        (Annealed(1.5), FORK),
        (Lantern(2, delta=0.9, fallback="uniform", filtered="published"), FORK),
        (Grouped(3, 9.0, 0.9, filtered="published"), SAMPLED),
        (CoupledRelaxed(2, budget=0.9), BEAM),
        (Judge(first_feature), FORK),
    ],
    ids=lambda x: type(x).__name__,
)
def test_no_verifier_emits_an_unknown_token(verifier, tree):
    changes = [odd_tokens]
    if verifier.selection not in ("coupled", "top"):
        changes.append(odd_probabilities)
    if not isinstance(tree, Tree):
        changes.append(odd_parents)
    rows = 6
    variables = Variables(PARAMS, {"table": TABLE}, VERIFIER_PARAMS)
    options = {
        "prompt": jnp.zeros(rows, jnp.int32),
        "sampling": Sampling.create(temperature=np.resize([1.0, 0.0, 2.0], rows)),
    }
    for change in changes:
        engine = Engine(toy_target(VOCAB), LENGTH, Mutated(change), tree, verifier)
        run = jax.jit(engine.generate)
        for seed in range(2):
            keys = batch_keys(seed, rows)
            out = run(variables, **options, keys=keys)
            assert ((out.tokens >= 0) & (out.tokens < VOCAB)).all()
            assert out.finite.all()
            if verifier == Coupled():
                plain = jax.jit(Engine(toy_target(VOCAB), LENGTH).generate)
                wanted = plain(Variables(PARAMS), **options, keys=keys)
                np.testing.assert_array_equal(out.tokens, wanted.tokens)


@dataclass(frozen=True)
class Recording(Coupled):
    """Custom verifier that records the drafts that it receives."""

    seen: Any = None

    def verify(self, log_p, draft, tree, noise, params=None, features=None):
        """Records the draft."""
        self.seen(draft)
        return super().verify(log_p, draft, tree, noise, params, features)


@pytest.mark.slow
def test_a_custom_verifier_receives_checked_drafts():
    drafts = []
    verifier = Recording(drafts.append)
    engine = Engine(toy_target(VOCAB), LENGTH, Mutated(odd_tokens), FORK, verifier)
    variables = Variables(PARAMS, {"table": TABLE})
    prompt, keys = jnp.zeros(6, jnp.int32), batch_keys(0, 6)
    state = engine.init(variables, prompt, sampling=Sampling.create(), keys=keys)
    engine.step(variables, state)
    (draft,) = drafts
    assert ((draft.tokens >= 0) & (draft.tokens < VOCAB)).all()
    assert not draft.valid.all() and draft.valid[:, 1:].any()


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint32])
def test_drafts_of_any_integer_dtype_keep_the_root(dtype):
    """The vocabulary may be larger than the range of the draft's dtype."""
    vocab = 300

    def narrow(draft, key):
        return replace(draft, tokens=draft.tokens.astype(dtype))

    params = toy_params(vocab, 40)
    table = {"table": jax.random.normal(jax.random.key(1), (1, vocab, vocab))}
    options = {
        "prompt": jnp.zeros(3, jnp.int32),
        "sampling": Sampling.create(),
        "keys": batch_keys(0, 3),
    }
    plain = Engine(toy_target(vocab), 6)
    engine = Engine(toy_target(vocab), 6, Mutated(narrow), FORK)
    wanted = jax.jit(plain.generate)(Variables(params), **options).tokens
    assert (wanted > 255).any()
    found = jax.jit(engine.generate)(Variables(params, table), **options).tokens
    np.testing.assert_array_equal(found, wanted)


# --- Output distribution -------------------------------------------------------------


def replace_token(draft, node, junk):
    """Replaces the token of a node by an unknown one."""
    return replace(draft, tokens=draft.tokens.at[:, node].set(junk))


VERIFIERS = [
    (Rejection(), "without_replacement"),
    (Rejection(), "with_replacement"),
    (Rejection(), "top"),
    (KSeq(), "with_replacement"),
    (GreedySet(), "top_and_sample"),
    (Coupled(), "without_replacement"),
]


@pytest.mark.variants(1)
@pytest.mark.parametrize(("verifier", "selection"), VERIFIERS, ids=str)
def test_the_distribution_is_exact_beside_unknown_tokens(verifier, selection):
    p = Conditionals.random(3, 3, 0)
    drafts = all_drafts(Conditionals.random(3, 2, 1), FORK, selection)
    for node in (1, 2, 3, 5):
        for junk in (3, -1, MOST):
            odd = replace(drafts, draft=replace_token(drafts.draft, node, junk))
            assert_lossless(verifier, p, odd, draws=0)
    assert_lossless(verifier, p, odd)


@pytest.mark.variants(2)
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, 0.5])
@pytest.mark.parametrize(("verifier", "selection"), VERIFIERS, ids=str)
def test_the_distribution_is_exact_beside_invalid_drafter_probabilities(
    verifier, selection, value
):
    """One entry of a node's `log_q` is invalid: its children are never accepted."""
    p = Conditionals.random(3, 3, 0)
    drafts = all_drafts(Conditionals.random(3, 2, 1), FORK, selection)
    for slot in range(len(FORK.internal)):
        log_q = drafts.draft.log_q.at[:, slot, 1].set(value)
        odd = replace(drafts, draft=replace(drafts.draft, log_q=log_q))
        assert_lossless(verifier, p, odd, draws=0)


def test_block_is_exact_beside_unknown_tokens_and_numbers():
    p, tree = Conditionals.random(3, 4, 0), Tree.chain(3)
    drafts = all_drafts(Conditionals.random(3, 3, 1), tree, "without_replacement")
    for node in (1, 2, 3):
        odd = replace(drafts, draft=replace_token(drafts.draft, node, 3))
        assert_lossless(Block(), p, odd, draws=0)
        log_q = drafts.draft.log_q.at[:, node - 1, 0].set(jnp.nan)
        odd = replace(drafts, draft=replace(drafts.draft, log_q=log_q))
        assert_lossless(Block(), p, odd, draws=0)


@pytest.mark.variants(1)
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_dynamic_samples_are_exact_beside_unknown_tokens(place):
    steps = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 4))
    drafts = sampled_drafts(steps, SAMPLED, "without_replacement", 20_000)
    p = Conditionals.random(4, 3, 5)
    odd = replace(drafts, draft=replace_token(drafts.draft, place, 4))
    assert_lossless(Rejection(), p, odd, draws=0)


@dataclass(frozen=True)
class Unchecked(Rejection):
    """Rejection sampling without checks of the draft."""

    def outcome(self, log_p, draft, tree, greedy=None, params=None):
        """Outcome from the draft as it is."""
        return sequential_siblings(
            draft.topology(tree),
            draft,
            jnp.exp(log_p),
            draft.log_q,
            accept=lambda now: jnp.minimum(1.0, now.p_token() / now.q_token()),
            reject=lambda now: jnp.maximum(now.p - now.q_all(), 0.0),
            remove=True,
        )


def test_a_verifier_that_skips_the_checks_is_caught():
    """The control: a hidden sample biases all samples after it; NaN biases all."""
    p = Conditionals.random(3, 3, 0)
    drafts = all_drafts(Conditionals.random(3, 2, 1), FORK, "without_replacement")
    assert_lossless(Unchecked(), p, drafts, draws=0)
    hidden = replace(drafts.draft, valid=drafts.draft.valid.at[:, 1].set(False))
    nan = replace(drafts.draft, log_q=drafts.draft.log_q.at[:, 0, 1].set(jnp.nan))
    for draft in (hidden, nan):
        assert_lossless(Rejection(), p, replace(drafts, draft=draft), draws=0)
        with pytest.raises(AssertionError, match=r"Unchecked\.outcome is biased"):
            assert_lossless(Unchecked(), p, replace(drafts, draft=draft), draws=0)
