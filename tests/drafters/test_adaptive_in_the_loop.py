"""Adaptive drafts over whole generations."""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.combine.adaptive import (
    Adaptive,
    ConfidenceCutoff,
    EntropyCutoff,
    LengthController,
)
from jaxspec.drafters.combine.merged import MergedDrafter
from jaxspec.drafters.dflash.acceptance_head import AcceptanceHead
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import InitContext, RoundResult
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, BestFirst
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Rejection
from jaxspec.testing.drafts import all_drafts
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import NoisyOracle, toy_params, toy_target
from tests.drafters.policies import (
    BUSHY,
    CHAIN,
    FixedDraft,
    Q,
    cut,
    drafts_of,
    ids,
    nested,
    with_confidence,
)
from tests.speculative.verify.first_tokens import exact_distribution, misfit

SIZE, LENGTH, ROWS = 5, 12, 24
PARAMS = toy_params(SIZE, 40)
HEAD = AcceptanceHead(4)
DRAFTER_PARAMS = {
    "table": 2 * jax.random.normal(jax.random.key(1), (3, SIZE, SIZE)),
    "embedding": 3 * jax.random.normal(jax.random.key(2), (SIZE, 4)),
    "head": HEAD.init_params(jax.random.key(3)),
}
ORDER = ("temperature", "top_k")
SAMPLING = Sampling.create(ROWS, temperature=np.resize([1.0, 0.0, 0.7], ROWS))
IN_LOOP = [
    (EntropyCutoff(0.7),),
    (ConfidenceCutoff(0.4),),
    (ConfidenceCutoff(0.3, "head"),),
    (ConfidenceCutoff(0.3, keep_trigger=False, least_length=0),),
    (LengthController(1, 2, 1, end_token=4), EntropyCutoff(1.2)),
]


@dataclass(frozen=True)
class HeadedTable(TableDrafter):
    """Table drafter with an acceptance head over its tokens' embeddings."""

    def propose(self, params, state, ctx):
        draft, state = super().propose(params, state, ctx)
        hidden = params["embedding"][draft.tokens]
        return replace(draft, confidence=HEAD.confidence(params["head"], hidden)), state


@lru_cache
def engine(tree, policies=(), verifier=Coupled(), length=LENGTH):  # noqa: B008
    drafter = nested(HeadedTable(), *policies)
    return Engine(toy_target(SIZE), length, drafter, tree, verifier, ORDER)


@lru_cache
def runner(*settings):
    run, variables = engine(*settings).generate, Variables(PARAMS, DRAFTER_PARAMS)
    return jax.jit(
        lambda prompt, sampling, keys: run(
            variables, prompt, sampling=sampling, keys=keys
        )
    )


@lru_cache
def plain(rows=ROWS):
    alone = Engine(toy_target(SIZE), LENGTH, order=ORDER)
    return jax.jit(alone.generate)(
        Variables(PARAMS),
        jnp.arange(rows) % SIZE,
        sampling=SAMPLING,
        keys=batch_keys(1, rows),
    )


def batch(*settings):
    return runner(*settings)(jnp.arange(ROWS) % SIZE, SAMPLING, batch_keys(1, ROWS))


def per_round(stats):
    return np.asarray(stats.proposed / (stats.calls - 1))


BEST = BestFirst(7, 3, branch=3)


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("tree", "policies"),
    [
        (Tree.chain(4), IN_LOOP[2]),
        (BUSHY, IN_LOOP[0]),
        (BUSHY, IN_LOOP[3]),
        (BEST, IN_LOOP[4]),
    ],
    ids=ids,
)
def test_shortened_drafts_give_the_tokens_of_plain_decoding(tree, policies):
    out = batch(tree, policies)
    np.testing.assert_array_equal(out.tokens, plain().tokens)
    assert bool(out.finite.all()) and out.stats.hits.sum() > 0
    proposed = per_round(out.stats)
    assert (proposed <= tree.size - 1).all()
    assert proposed.mean() < 0.9 * (tree.size - 1)
    assert proposed.std() > 0  # rows are cut one by one
    order = np.random.default_rng(0).permutation(ROWS)
    moved = runner(tree, policies)(
        jnp.arange(ROWS)[order] % SIZE,
        jax.tree.map(lambda x: x[order], SAMPLING),
        batch_keys(1, ROWS)[order],
    )
    np.testing.assert_array_equal(moved.tokens, out.tokens[order])
    np.testing.assert_array_equal(moved.stats.proposed, out.stats.proposed[order])


def test_policies_that_never_stop_drop_nothing():
    never = (EntropyCutoff(inf), ConfidenceCutoff(0.0), LengthController(3, 3))
    draft = drafts_of(Rejection(), BUSHY).draft
    np.testing.assert_array_equal(cut(draft, BUSHY, *never).valid, draft.valid)


def test_proposed_tokens_are_connected_to_the_root():
    """Tokens below one that was cut are not counted as proposed."""
    for policies in IN_LOOP:
        drafts = with_confidence(all_drafts(Q, CHAIN, "top").draft, CHAIN)
        valid = np.asarray(cut(drafts, CHAIN, *policies).valid)
        assert (valid[:, 1:] <= valid[:, :-1]).all()


def test_draft_lengths_are_controlled_per_sequence():
    tree, controller = Tree.chain(6), LengthController(1, 6, 3)
    drafter = Adaptive(NoisyOracle(SIZE), controller)
    alone = Engine(toy_target(SIZE), LENGTH, drafter, tree, order=ORDER)
    lucky = np.arange(ROWS) % 2 == 0
    params = {
        "tokens": plain().tokens,
        "spoil": jnp.where(lucky, 0.0, 1.0)[:, None],
    }
    out = jax.jit(alone.generate)(
        Variables(PARAMS, params),
        jnp.arange(ROWS) % SIZE,
        sampling=SAMPLING,
        keys=batch_keys(1, ROWS),
    )
    np.testing.assert_array_equal(out.tokens, plain().tokens)
    proposed = per_round(out.stats)
    assert proposed[lucky].mean() > 1.5 * proposed[~lucky].mean()


def test_rejection_stays_unbiased_over_several_rounds():
    """The controller's state from one round must not bias the next."""
    policies = (EntropyCutoff(1.2), LengthController(1, 2, 1, end_token=4))
    rows = 4000
    run = runner(CHAIN, policies, Rejection(), 4)
    arguments = jnp.zeros(rows, jnp.int32), Sampling.create(rows), batch_keys(3, rows)
    out = run(*arguments)
    assert misfit(np.asarray(out.tokens), exact_distribution(PARAMS)) < 5
    assert per_round(out.stats).mean() < 2.9


def test_a_policy_declared_past_only_by_mistake_biases_the_output():
    @dataclass(frozen=True)
    class Mislabeled(ConfidenceCutoff):
        @property
        def past_only(self):
            return True

    rows = 4000
    dropping = ConfidenceCutoff(0.4, keep_trigger=False, least_length=0)
    mislabeled = Mislabeled(0.4, keep_trigger=False, least_length=0)
    arguments = jnp.zeros(rows, jnp.int32), Sampling.create(rows), batch_keys(3, rows)
    with pytest.raises(ConfigError, match="keep_trigger=True"):
        runner(CHAIN, (dropping,), Rejection(), 4)(*arguments)
    out = runner(CHAIN, (mislabeled,), Rejection(), 4)(*arguments)
    assert misfit(np.asarray(out.tokens), exact_distribution(PARAMS)) > 10


def test_the_state_of_policies_can_be_donated_from_the_start():
    drafter = nested(FixedDraft(), *(policy for line in IN_LOOP for policy in line))
    state = drafter.init(None, InitContext(None, None, None, CHAIN, ROWS, 0))
    jax.jit(lambda state: state, donate_argnums=0)(state)


def test_the_wrapped_drafter_observes_every_round():
    @dataclass(frozen=True)
    class Counting(TableDrafter):
        def init(self, params, ctx):
            return jnp.zeros(ctx.batch, jnp.int32)

        def observe(self, params, state, result):
            return state + result.counts

    @dataclass(frozen=True)
    class WithExtraQueries(Counting):
        num_extra_queries: int = 3

    drafter = nested(Counting(), LengthController(1, 2, 1), EntropyCutoff(1.0))
    state = drafter.init(None, InitContext(None, None, None, CHAIN, 2, 0))
    none, counts = jnp.zeros(0), jnp.array([3, 0])
    result = RoundResult(none, counts, none, jnp.array([2, 0]), none, none, None, None)
    (counted, lengths), _ = drafter.observe(None, state, result)
    np.testing.assert_array_equal(counted, counts)
    np.testing.assert_array_equal(lengths.accepted, [1, 0])
    assert (
        nested(
            WithExtraQueries(), EntropyCutoff(1.0), ConfidenceCutoff(0.3)
        ).num_extra_queries
        == 3
    )
    assert drafter.num_extra_queries == 0
    merged = MergedDrafter(drafter, drafter, Tree.chain(1), Tree.chain(1))
    assert merged.tree.size == 3  # allowed: there are no extra queries


@pytest.mark.parametrize(
    ("drafter", "tree", "policy", "words"),
    [
        (TableDrafter(), Beam(5, 2), EntropyCutoff(1.0), "EntropyCutoff needs .*log_q"),
        (TableDrafter(), Beam(5, 2), ConfidenceCutoff(0.5), "needs .*log_q"),
        (TableDrafter(), CHAIN, ConfidenceCutoff(0.5, "head"), "source='q'"),
    ],
)
def test_a_policy_names_the_missing_output_of_its_drafter(drafter, tree, policy, words):
    adaptive_engine = Engine(
        toy_target(SIZE), 3, Adaptive(drafter, policy), tree, order=ORDER
    )
    with pytest.raises(ConfigError, match=words):
        jax.eval_shape(
            adaptive_engine.generate,
            Variables(PARAMS, DRAFTER_PARAMS),
            jnp.zeros(1, jnp.int32),
            sampling=Sampling.create(),
            keys=batch_keys(0, 1),
        )
