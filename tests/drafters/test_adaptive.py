"""Adaptive drafts: exactness, refused policies, and acceptance heads."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import floor, inf, log, nan

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, BestFirst, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Coupled, GreedySet, KSeq, Rejection
from jaxspec.testing.drafts import Conditionals, all_drafts, sampled_drafts
from jaxspec.testing.enumeration import assert_lossless, distortion, output_law
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import NoisyOracle, toy_params, toy_target
from tests.spec.test_rules_in_the_loop import misfit, target_law

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


def a_round(rows, tree, selection="coupled"):
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
    return drafter.propose(draft, state, a_round(rows, tree))[0]


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


def drafts_of(verifier, tree, q=Q):
    drafts = all_drafts(q, tree, verifier.selection)
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
DRAWN = [
    (Rejection(), CHAIN),
    (Rejection(), BUSHY),
    (Rejection("with_replacement"), BUSHY),
    (KSeq(), BUSHY),
    (GreedySet(), BUSHY),
    (Block(), CHAIN),
]
GIVEN = [(Coupled(), CHAIN), (Coupled(), BUSHY), (Rejection("top"), BUSHY)]


@pytest.mark.parametrize("policies", PAST, ids=ids)
def test_stopping_after_a_token_leaves_every_rule_exact(policies):
    for verifier, tree in DRAWN + GIVEN:
        drafts = drafts_of(verifier, tree)
        short = cut(drafts.draft, tree, *policies)
        assert short.pruned_by == "past"
        dropped, deep = np.asarray(drafts.draft.valid & ~short.valid), tree.depths > 1
        assert dropped.any() and np.asarray(short.valid)[:, deep].any()
        assert_lossless(verifier, P, replace(drafts, draft=short), draws=0)


@pytest.mark.parametrize("policy", DROPPING, ids=ids)
def test_dropping_a_token_for_what_it_is_is_refused_where_it_would_bias(policy):
    for verifier, tree in DRAWN:
        drafts = drafts_of(verifier, tree)
        short = cut(drafts.draft, tree, policy)
        with pytest.raises(ConfigError, match="keep_trigger=True"):
            output_law(verifier, P, replace(drafts, draft=short))
        # A later policy that uses only ancestors does not undo the bias.
        with pytest.raises(ConfigError, match="keep_trigger=True"):
            later = cut(short, tree, EntropyCutoff(inf))
            output_law(verifier, P, replace(drafts, draft=later))
        mislabeled = replace(drafts, draft=replace(short, pruned_by="past"))
        with pytest.raises(AssertionError, match="is biased"):
            assert_lossless(verifier, P, mislabeled, draws=0)
        assert distortion(verifier, P, mislabeled) > 1e-3
    for verifier, tree in GIVEN:
        drafts = drafts_of(verifier, tree)
        dropped = cut(drafts.draft, tree, policy)
        assert dropped.pruned_by == "token"
        assert_lossless(verifier, P, replace(drafts, draft=dropped), draws=0)


def test_the_bias_of_dropping_unlikely_tokens_is_the_known_one():
    """(.5, .3, .2) drafted by (.6, .3, .1), dropped below .2, is (.55, .33, .12)."""
    tree = Tree.chain(1)
    p = Conditionals.constant([0.5, 0.3, 0.2], 2)
    q = Conditionals.constant([0.6, 0.3, 0.1], 2)
    drafts = all_drafts(q, tree, "without_replacement")
    dropping = ConfidenceCutoff(0.2, keep_trigger=False, least_length=0)
    short = replace(cut(drafts.draft, tree, dropping), pruned_by="past")
    law = output_law(Rejection(), p, replace(drafts, draft=short)).sum(axis=1)
    np.testing.assert_allclose(law, [0.55, 0.33, 0.12], atol=1e-6)


def test_judging_a_chain_by_its_end_is_caught():
    """A policy declared `past_only` that drops whole drafts of low probability."""

    @dataclass(frozen=True)
    class AllOrNothing(ConfidenceCutoff):
        def keep(self, state, draft, ctx):
            line = draft.topology(ctx.tree).cumprod_path(
                self._confidence_of(draft, ctx)
            )
            return jnp.broadcast_to(line[:, -1:] >= self.least, line.shape), state

        def _confidence_of(self, draft, ctx):
            shape = draft.topology(ctx.tree)
            return self._confidence(shape, draft).at[:, 0].set(1.0)

    for verifier in (Rejection(), Block()):
        drafts = drafts_of(verifier, CHAIN)
        short = cut(drafts.draft, CHAIN, AllOrNothing(0.05))
        with pytest.raises(AssertionError, match="is biased"):
            assert_lossless(verifier, P, replace(drafts, draft=short), draws=0)


@pytest.mark.parametrize(
    "tree", [StochasticBeam(3, 2), BestFirst(6, 3, branch=2)], ids=str
)
def test_grown_drafts_stay_exact_too(tree):
    steps = np.random.default_rng(0).dirichlet(np.full(VOCAB, 0.5), size=(3, VOCAB))
    drafts = sampled_drafts(steps, tree, "without_replacement", 4000)
    for policy in (EntropyCutoff(0.8), ConfidenceCutoff(0.3), LengthController(1, 2)):
        short = cut(drafts.draft, tree, policy)
        assert (drafts.draft.valid & ~short.valid).any()
        assert_lossless(Rejection(), P, replace(drafts, draft=short), draws=0)
    dropping = ConfidenceCutoff(0.3, keep_trigger=False, least_length=0)
    mislabeled = replace(cut(drafts.draft, tree, dropping), pruned_by="past")
    with pytest.raises(AssertionError, match="is biased"):
        assert_lossless(Rejection(), P, replace(drafts, draft=mislabeled), draws=0)


def depends_on_later(draft, tree, n, policies, seed):
    """Whether a policy's decision on node `n` depends on more than its ancestors."""
    rng = np.random.default_rng(seed)
    later = ~tree.ancestors[n] | (np.arange(tree.size) == n)
    tokens = rng.integers(VOCAB, size=draft.tokens.shape)
    confidence = rng.random(draft.tokens.shape)
    log_q = np.log(rng.dirichlet(np.ones(VOCAB), size=draft.log_q.shape[:2]))
    other = replace(
        draft,
        tokens=jnp.where(later, tokens, draft.tokens),
        confidence=jnp.where(later, confidence, draft.confidence),
        log_q=jnp.where(later[tree.internal][:, None], log_q, draft.log_q),
    )
    before, after = (cut(x, tree, *policies).valid[:, n] for x in (draft, other))
    return bool((before != after).any())


@pytest.mark.parametrize("policies", PAST, ids=ids)
def test_the_past_is_all_that_decides(policies):
    draft = drafts_of(Rejection(), BUSHY).draft
    for n in range(1, BUSHY.size):
        assert not depends_on_later(draft, BUSHY, n, policies, n)


def test_the_same_check_finds_a_policy_that_uses_the_token():
    draft = drafts_of(Rejection(), BUSHY).draft
    for policy in (DROPPING[0], DROPPING[2]):
        assert depends_on_later(draft, BUSHY, 1, (policy,), 0)


def test_policies_keep_the_nodes_of_their_formula():
    """Compares with plain Python, node by node."""
    drafts = drafts_of(Rejection(), BUSHY)
    tokens = np.asarray(drafts.draft.tokens)
    head = np.asarray(drafts.draft.confidence, np.float64)

    def entropy(q):
        return -sum(x * log(x) for x in q if x > 0)

    def keeps(b, n, policy):
        path = [m for m in range(tree.size) if tree.ancestors[n, m]]  # root first
        words = [tokens[b, m] for m in path]
        qs = [Q.tables[d][tuple(words[1 : d + 1])] for d in range(len(path))]
        if isinstance(policy, EntropyCutoff):
            return all(entropy(q) <= policy.most for q in qs[:-1])
        used = path[1:-1] if policy.keep_trigger else path[1:]
        chance = 1.0
        for d, m in enumerate(used):
            q = qs[d][tokens[b, m]]
            chance *= head[b, m] if policy.source == "head" else q
        return chance >= policy.least or len(path) - 1 <= policy.least_length

    tree = BUSHY
    policies = [policy for line in PAST for policy in line] + DROPPING
    for policy in policies:
        if isinstance(policy, LengthController):
            continue
        got = np.asarray(cut(drafts.draft, tree, policy).valid)
        want = np.array(
            [
                [keeps(b, n, policy) for n in range(tree.size)]
                for b in range(0, len(tokens), 7)
            ]
        )
        valid = np.asarray(drafts.draft.valid)[::7]
        np.testing.assert_array_equal(got[::7], want & valid)


# DiffuSpec's controller.


def diffuspec(history, least, most, step, decay):
    """Draft lengths of one sequence by the paper's formula, the first included."""
    length, generated, accepted = most, 0.0, 0.0
    lengths = [length]
    for end, hit in history:  # drafted tokens before an end token; accepted tokens
        drafted = min(end, length)
        generated = decay * generated + (1 - decay) * drafted
        accepted = decay * accepted + (1 - decay) * min(hit, drafted)
        length = floor(generated) + (step if accepted >= generated else 0)
        length = min(max(length, least), most)
        lengths.append(length)
    return lengths


@pytest.mark.parametrize(
    "controller",
    [
        LengthController(end_token=3),
        LengthController(),
        LengthController(2, 12, 3, decay=0.25, end_token=3),
        LengthController(1, 30, 4, decay=0.0, end_token=3),
    ],
    ids=str,
)
def test_the_length_controller_follows_its_paper(controller):
    """Made-up histories of few rounds, so that float32 holds the averages exactly."""
    rows, rounds, tree = 64, 9, Tree.chain(30)
    rng = np.random.default_rng(0)
    ends = rng.integers(0, 60, size=(rows, rounds))
    ends = np.where(ends < tree.depth, ends, tree.depth)
    greedy = rng.random((rows, 1)) < rng.random((rows, rounds))  # all of it accepted
    hits = np.where(greedy, tree.depth, rng.integers(0, 31, size=(rows, rounds)))
    live = rng.random((rows, rounds)) < 0.9  # other rounds did not count
    no_end = controller.end_token is None
    c, state = controller, controller.init(rows)
    keep, observe = jax.jit(controller.keep), jax.jit(controller.observe)
    ctx = a_round(rows, tree)
    got = [state.length]
    for t in range(rounds):
        place = np.arange(tree.size) - 1
        tokens = np.where(
            place == ends[:, [t]], 3, rng.integers(3, size=(1, tree.size))
        )
        tokens = np.where(place > ends[:, [t]], rng.integers(4, size=31), tokens)
        tokens[:, 0] = 3  # the root is no drafted token
        draft = Draft(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
        kept, state = keep(state, draft, ctx)
        np.testing.assert_array_equal(kept.sum(axis=1) - 1, got[-1])  # prefixes
        assert not (np.diff(kept.astype(int), axis=1) > 0).any()
        drafted = np.minimum(got[-1], tree.depth if no_end else ends[:, t])
        accepted = jnp.asarray(np.minimum(hits[:, t], drafted))
        none = jnp.zeros(0)
        counts = jnp.where(live[:, t], accepted + 1, 0)
        state = observe(
            state, RoundResult(none, counts, none, accepted, none, none, None, None)
        )
        got.append(state.length)
    got = np.stack(got, axis=1)
    for b in range(rows):
        rows_ends = np.full(rounds, tree.depth) if no_end else ends[b]
        history = list(zip(rows_ends[live[b]], hits[b][live[b]], strict=True))
        expected = diffuspec(history, c.least, c.most, c.step, c.decay)
        stay = np.concatenate([[0], np.cumsum(live[b])])
        np.testing.assert_array_equal(got[b], np.array(expected)[stay])
    assert len(np.unique(got)) > 2


def test_the_length_of_a_draft_is_that_of_its_deepest_valid_node():
    """Nodes that another policy or a dynamic tree left out do not count."""
    controller = LengthController(1, 6, 2)
    valid = jnp.arange(7) <= jnp.array([[6], [4], [1], [0]])
    hole = jnp.ones((1, 7), bool).at[0, 3].set(False)  # nothing hangs below
    valid = jnp.concatenate([valid, hole])
    draft = Draft(jnp.zeros(valid.shape, jnp.int32), valid)
    _, state = controller.keep(controller.init(5), draft, a_round(5, Tree.chain(6)))
    np.testing.assert_array_equal(state.drafted, [6, 4, 1, 0, 2])


def test_in_a_tree_the_first_choices_decide_where_the_text_ends():
    tree = Tree.named("0,1,00,10,000,100")
    tokens = np.zeros((3, tree.size), int)
    rank, depth = np.array(tree.ranks), tree.depths
    main = (tree.ancestors & (rank > 0)).sum(1) == 0
    tokens[0, main & (depth == 2)] = 3
    tokens[1, ~main & (depth == 1)] = 3
    draft = Draft(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    controller = LengthController(1, 3, end_token=3)
    _, state = controller.keep(controller.init(3), draft, a_round(3, tree))
    np.testing.assert_array_equal(state.drafted, [1, 3, 3])


# In the loop.

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
    assert misfit(np.asarray(out.tokens), target_law(0)) < 5
    assert per_round(out.stats).mean() < 2.9


def test_the_bias_that_the_loop_refuses_is_real():
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
    assert misfit(np.asarray(out.tokens), target_law(0)) > 10


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


# SpecDec++'s head.


def separation(confidence, accepted):
    """Probability that an accepted token has more confidence than a rejected one."""
    yes, no = confidence[accepted], confidence[~accepted]
    return float((yes[:, None] > no).mean() + (yes[:, None] == no).mean() / 2)


@lru_cache
def trainer(head, steps, rate=0.01):
    def train(params, hidden, accept, use):
        optimizer = optax.adam(rate)

        def step(carry, _):
            params, state = carry
            loss, slope = jax.value_and_grad(head.loss)(params, hidden, accept, use)
            change, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, change), state), loss

        carry = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(step, carry, length=steps)
        return params, losses

    return jax.jit(train)


def hidden_states(seed, rows):
    """States, and whether a token is accepted: where two coordinates agree in sign."""
    hidden = np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)
    return hidden, hidden[:, 0] * hidden[:, 1] > 0


@pytest.mark.parametrize("shared", [True, False])
def test_a_trained_head_separates_accepted_from_rejected(shared):
    """No linear map of the states could. Half of the labels are wrong and unused."""
    head = AcceptanceHead(6, shared=shared)
    params = head.init_params(jax.random.key(0))
    hidden, accepted = hidden_states(0, 2000)
    use = np.arange(2000) % 2 == 0
    accept = np.where(accepted, 0.9, 0.1)
    accept = np.where(use, accept, np.where(accepted, np.nan, 1.0))
    trained, losses = trainer(head, 400)(params, hidden, accept, use)
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0]
    fresh, truth = hidden_states(1, 1000)
    before, after = (
        separation(np.asarray(head.confidence(x, fresh)), truth)
        for x in (params, trained)
    )
    assert abs(before - 0.5) < 0.2 and after > 0.95


def test_a_trained_head_and_a_cutoff_find_the_first_rejected_token():
    """SpecDec++ as a whole: a head for `Draft.confidence`, and a threshold of .7."""
    head, (hidden, accepted) = AcceptanceHead(6), hidden_states(0, 2000)
    params = head.init_params(jax.random.key(0))
    use = np.ones(len(hidden), bool)
    trained, _ = trainer(head, 400)(params, hidden, accepted.astype(np.float32), use)
    tree = Tree.chain(5)
    hidden, accepted = hidden_states(2, 300 * tree.size)
    hidden = hidden.reshape(300, tree.size, -1)
    accepted = accepted.reshape(300, tree.size)[:, 1:]
    length = np.cumprod(accepted, axis=1).sum(axis=1)
    expected = np.minimum(length + 1, tree.depth)  # the token that failed is kept

    def share(params):
        draft = Draft(
            jnp.zeros((300, tree.size), jnp.int32),
            jnp.ones((300, tree.size), bool),
            confidence=head.confidence(params, hidden),
        )
        short = cut(draft, tree, ConfidenceCutoff(0.7, "head"))
        return (np.asarray(short.valid).sum(axis=1) - 1 == expected).mean()

    assert share(trained) > 0.75 and share(params) < 0.6


def test_rejections_weigh_six_times_in_the_loss():
    head, rng = AcceptanceHead(5), np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.3, head.init_params(jax.random.key(0)))
    hidden, accept = rng.normal(size=(3, 4, 5)), rng.random((3, 4))
    use = rng.random((3, 4)) < 0.6
    c = np.asarray(head.confidence(params, hidden), np.float64)
    each = -(accept * np.log(c) + 6 * (1 - accept) * np.log(1 - c))
    loss = jax.jit(partial(head.loss, params, hidden))
    np.testing.assert_allclose(loss(accept), each.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss(accept, use), each[use].mean(), rtol=1e-5)
    even = -(accept * np.log(c) + (1 - accept) * np.log(1 - c))
    np.testing.assert_allclose(loss(accept, reject_weight=1.0), even.mean(), rtol=1e-5)
    assert loss(accept, np.zeros((3, 4), bool)) == 0


def test_a_head_without_information_learns_the_weighted_share():
    """With states of zero only biases remain: `a / (a + 6 (1 - a))` is best."""
    head = AcceptanceHead(3)
    hidden, use = np.zeros((10, 3), np.float32), np.ones(10, bool)
    accept = np.where(np.arange(10) < 8, 1.0, 0.0)
    params = head.init_params(jax.random.key(0))
    trained, _ = trainer(head, 400, 0.05)(params, hidden, accept, use)
    np.testing.assert_allclose(head.confidence(trained, hidden), 0.4, atol=1e-3)


def test_a_shared_block_equals_copies_of_it():
    shared, own = AcceptanceHead(4, 3), AcceptanceHead(4, 3, shared=False)
    params = shared.init_params(jax.random.key(0))
    assert set(params) == {"block", "head"}
    copies = {f"block_{i}": params["block"] for i in range(3)}
    copies["head"] = params["head"]
    assert jax.tree.structure(copies) == jax.tree.structure(
        own.init_params(jax.random.key(0))
    )
    hidden = jax.random.normal(jax.random.key(1), (7, 4))
    np.testing.assert_array_equal(
        shared.confidence(params, hidden), own.confidence(copies, hidden)
    )
    h = np.asarray(hidden, np.float64)  # the published head, in numpy
    for _ in range(3):
        x = h @ np.asarray(params["block"]["kernel"]) + params["block"]["bias"]
        h = h + x / (1 + np.exp(-x))
    logits = h @ np.asarray(params["head"]["kernel"]) + params["head"]["bias"]
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(shared.confidence(params, hidden), expected, atol=1e-5)


# Invalid settings.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EntropyCutoff(-0.1), "most=-0.1"),
        (lambda: EntropyCutoff(nan), "most=nan"),
        (lambda: ConfidenceCutoff(-0.1), "least=-0.1"),
        (lambda: ConfidenceCutoff(1.1), "least=1.1"),
        (lambda: ConfidenceCutoff(nan), "least=nan"),
        (lambda: ConfidenceCutoff(0.5, "p"), "source='p'"),
        (lambda: ConfidenceCutoff(0.5, least_length=-1), "least_length=-1"),
        (lambda: LengthController(0), "1 <= least"),
        (lambda: LengthController(31), "least <= most"),
        (lambda: LengthController(decay=1.0), "decay"),
        (lambda: LengthController(decay=-0.5), "decay"),
        (lambda: LengthController(decay=nan), "decay"),
        (lambda: LengthController(step=-1), "step"),
        (lambda: LengthController(end_token=-1), "end_token"),
        (lambda: AcceptanceHead(0), "positive width"),
        (lambda: AcceptanceHead(4, layers=-1), "layers"),
    ],
)
def test_invalid_settings_raise(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


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
