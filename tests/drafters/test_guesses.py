"""Drafts of each method equal those that its paper defines."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys, position_noise, private_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.drafters.combine.jacobi_mix import JacobiMix
from jaxspec.drafters.draft_model.drafter import DraftModel
from jaxspec.drafters.masked.deer import Deer
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.drafters.training_free.lookahead import Lookahead
from jaxspec.drafters.training_free.ngram import NgramTable
from jaxspec.drafters.training_free.prompt_lookup import PromptLookup
from jaxspec.drafters.training_free.recycling import TokenRecycling
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.draft import Draft, DraftContext, InitContext
from jaxspec.speculative.trees.dynamic import Beam, BestFirst
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.properties import run_rounds
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.rounds import a_round, after_rounds, result_of
from tests.drafters.tiny import FEATURES, TARGET, feature_params, target_params

VOCAB, ROWS, LENGTH = 6, 3, 21
CLASSES = jnp.array([0, 2, 1])
PARAMS = toy_params(VOCAB, 60)
PROMPT = jnp.array([[1, 2, 3, 1], [4, 4, -1, -1], [0, -1, -1, -1]])


def next_round(engine, state, sampling):
    """Draft context of the next round."""
    last = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)
    position = state.start + state.length - 1
    after = position[:, None] + 1 + jnp.arange(engine.path_length)
    return DraftContext(
        root=last[:, 0],
        tokens=state.tokens,
        position=position,
        index=state.length,
        noise=position_noise(state.keys, after, engine.target.vocab_size),
        keys=private_keys(state.keys, position),
        sampling=sampling,
        tree=engine.tree,
        selection=engine.candidates,
        order=engine.order,
    )


@pytest.mark.variants(3)
@pytest.mark.parametrize(
    "tree",
    [Tree.chain(4), Tree.named("0,1,00,01,10,000"), Beam(9, 3, 4, 3), BestFirst(5, 4)],
    ids=str,
)
@pytest.mark.parametrize("branches", [1, 2])
def test_a_drafter_equal_to_the_target_is_always_accepted(tree, branches):
    """Its cache, positions and masks are those of the target itself."""
    target = toy_target(VOCAB, branches)
    engine, state = run_rounds(
        target,
        PARAMS,
        DraftModel(target),
        PARAMS,
        tree,
        PROMPT,
        length=LENGTH,
        batch=ROWS,
        sampling=Sampling.create(ROWS, temperature=[1.0, 0.0, 0.7], cfg_scale=1.5),
        stopping=StoppingCriteria.create(
            ROWS, max_new_tokens=[LENGTH, 1 + 2 * (tree.depth + 1), LENGTH]
        ),
        order=("temperature",),
    )
    accepted = np.asarray(state.stats.accepted)
    if isinstance(tree, Tree):  # a dynamic tree need not reach its full depth
        assert accepted[:, : tree.depth].sum() == 0
    assert accepted[:, 1:].sum() > 0.9 * accepted.sum()


def assert_same_draft(a, b):
    """Compares two drafts of one round, up to rounding."""
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.valid, b.valid)
    if a.log_q is not None:
        np.testing.assert_allclose(a.log_q, b.log_q, atol=2e-3)
        assert not np.isnan(a.log_q).any()


QUICK = ("block",)
ON_FEATURES = [
    pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
    for n in FEATURES
    if n.startswith(("eagle", "medusa", "hydra", "block"))
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_context_read_in_pieces_gives_the_same_draft(name):
    """After some rounds the draft is that of a drafter that read all tokens at once."""
    (drafter, tree), params = FEATURES[name], feature_params(name)
    target = Transformer(TARGET).as_target(
        cfg=True, feature_layers=drafter.feature_layers
    )
    sampling = Sampling.create(ROWS, cfg_scale=2.0)
    engine, state = after_rounds(
        3, target, target_params(), drafter, params, tree, CLASSES, sampling
    )
    ctx = next_round(engine, state, sampling)
    pieces, _ = jax.jit(drafter.propose)(params, state.drafter, ctx)

    tokens = state.tokens[:, :16]
    null = jnp.repeat(jnp.arange(2) > 0, ROWS)
    _, features = Transformer(TARGET).score(
        target_params(),
        jnp.concatenate([CLASSES] * 2),
        jnp.concatenate([tokens] * 2),
        null=null,
        feature_layers=drafter.feature_layers,
    )
    prompt = jnp.pad(tokens, ((0, 0), (1, 0)))  # position 0 is the class
    lengths = jnp.concatenate([state.length] * 2)  # all but the root
    start = InitContext(prompt, features, lengths, tree, ROWS, 8)
    fresh = drafter.init(params, start)
    at_once, _ = jax.jit(drafter.propose)(params, fresh, ctx)
    assert_same_draft(pieces, at_once)


@pytest.mark.parametrize(
    "name",
    [
        "block",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("eagle-1", "eagle-3", "hydra++")
        ),
    ],
)
def test_a_node_depends_on_its_own_path_alone(name):
    (drafter, _), params = FEATURES[name], feature_params(name)
    features = jax.random.normal(
        jax.random.key(1), (2 * ROWS, 3, 32 * len(drafter.feature_layers))
    )
    log_q = []
    for tree in (Tree.named("0,1,2,00,01,10,000"), Tree.chain(3)):
        start = InitContext(CLASSES, features, jnp.full(2 * ROWS, 3), tree, ROWS, 8)
        state = drafter.init(params, start)
        ctx = DraftContext(
            root=jnp.array([3, 1, 5]),
            tokens=jnp.zeros((ROWS, 4), jnp.int32),
            position=jnp.full(ROWS, 3),
            index=jnp.full(ROWS, 3),
            noise=position_noise(
                batch_keys(0, ROWS), jnp.tile(jnp.arange(4), (ROWS, 1)), 19
            ),
            keys=batch_keys(0, ROWS),
            sampling=Sampling.create(ROWS, cfg_scale=2.0),
            tree=tree,
        )
        draft, _ = drafter.propose(params, state, ctx)
        first = [tree.rank_paths.index((0,) * d) for d in range(3)]
        log_q.append(draft.log_q[:, tree.slots[first]])
    np.testing.assert_allclose(log_q[0], log_q[1], atol=1e-4)


def test_jacobi_drafts_from_the_last_logits_of_the_target():
    tree, rows = Tree.named("0,1,00,10,000,100"), 2
    jacobi = Jacobi(VOCAB, "uniform", contexts="first")
    state = jacobi.init(
        None, InitContext(None, None, jnp.ones(rows, jnp.int32), tree, rows, 9)
    )
    logits = jax.random.normal(jax.random.key(0), (rows, tree.size, VOCAB))
    draft = Draft(jnp.zeros((rows, 7), jnp.int32), jnp.ones((rows, 7), bool))
    # Node 2 (path 1) was accepted; below it lie nodes 4 and 6 (10, 100).
    state = jacobi.observe(None, state, result_of(logits, draft, tree, [0, 2, 2, 2], 1))
    assert tree.rank_paths[4] == (1, 0) and tree.rank_paths[6] == (1, 0, 0)
    np.testing.assert_array_equal(state.known[0], [True, True, False])
    np.testing.assert_array_equal(state.logits[:, 0], logits[:, 4])
    np.testing.assert_array_equal(state.logits[:, 1], logits[:, 6])
    # Nothing was accepted: the logits of the first nodes of each depth are used.
    state = jacobi.observe(None, state, result_of(logits, draft, tree, [0] * 4, 0))
    np.testing.assert_array_equal(state.logits[:, 0], logits[:, 1])
    np.testing.assert_array_equal(state.logits[:, 2], logits[:, 5])


def test_jacobi_averages_over_all_contexts_of_a_place():
    tree, rows = Tree.named("0,1,00,10,000,100"), 2
    jacobi = Jacobi(VOCAB)
    start = jacobi.init(
        None, InitContext(None, None, jnp.ones(rows, jnp.int32), tree, rows, 9)
    )
    logits = jax.random.normal(jax.random.key(0), (rows, tree.size, VOCAB))
    logits = logits.at[0, 3].set(jnp.nan)
    valid = jnp.ones((rows, 7), bool).at[0, 3].set(False)
    draft = Draft(jnp.zeros((rows, 7), jnp.int32), valid)
    # Node 2 was accepted: below it lies node 4, beside it node 3, at the same depth.
    state = jacobi.observe(None, start, result_of(logits, draft, tree, [0, 2, 2, 2], 1))
    log_p = jax.nn.log_softmax(logits, axis=-1)
    np.testing.assert_allclose(state.logits[0, 0], log_p[0, 4], rtol=1e-5)
    np.testing.assert_allclose(
        state.logits[1, 0], (log_p[1, 3] + 3 * log_p[1, 4]) / 4, rtol=1e-5
    )
    # On a chain there is one context.
    chain = Tree.chain(2)
    logits, draft = logits[1:, :3], Draft(draft.tokens[1:, :3], valid[1:, :3])
    states = [
        Jacobi(VOCAB, contexts=contexts).observe(
            None,
            jax.tree.map(lambda x: x[1:, :2], start),
            result_of(logits, draft, chain, [0, 0, 0], 0),
        )
        for contexts in ("first", "all")
    ]
    first, every = (jax.nn.softmax(state.logits, axis=-1) for state in states)
    np.testing.assert_allclose(first, every, rtol=1e-5)


def test_mixed_logits_lie_between_those_of_drafter_and_jacobi():
    tree, rows = Tree.named("0,1,00,10"), 2
    table = {"table": jax.random.normal(jax.random.key(1), (1, VOCAB, VOCAB))}
    ctx = InitContext(None, None, jnp.ones(rows, jnp.int32), tree, rows, 9)

    def log_q(drafter, params):
        """Log-probabilities after the root, once a pass has been observed."""
        state = drafter.init(params, ctx)
        logits = jax.random.normal(jax.random.key(0), (rows, tree.size, VOCAB))
        draft = Draft(jnp.zeros((rows, 5), jnp.int32), jnp.ones((rows, 5), bool))
        result = result_of(logits, draft, tree, [0, 0, 0], 0)
        state = drafter.observe(params, state, result)
        round_ = a_round([1, 2], tree, VOCAB, rows)
        round_ = replace(round_, sampling=Sampling.create(rows))
        return drafter.propose(params, state, round_)[0].log_q[:, 0]

    own = TableDrafter()
    first, last = log_q(own, table), log_q(Jacobi(VOCAB), None)
    for weight in (0.0, 0.4, 1.0):
        mixed = log_q(JacobiMix(own, VOCAB, weight), table)
        expected = jax.nn.log_softmax((1 - weight) * first + weight * last, axis=-1)
        np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="weight"):
        JacobiMix(own, VOCAB, 1.5)


def test_recycling_keeps_the_latest_successors_of_every_node():
    tree, rows = Tree.named("0,1,00"), 2
    table = TokenRecycling(VOCAB, 3, shared=False)
    state = table.init(
        None, InitContext(None, None, jnp.ones(2, jnp.int32), tree, rows, 9)
    )
    logits = jax.random.normal(jax.random.key(0), (rows, tree.size, VOCAB))
    tokens = jnp.array([[1, 2, 2, 4], [5, 0, 3, 3]])
    draft = Draft(tokens, jnp.array([[True] * 4, [True, True, True, False]]))
    state = table.observe(None, state, result_of(logits, draft, tree, [0, 0, 0], 0))
    for row, token, node in [(0, 1, 0), (0, 2, 2), (0, 4, 3), (1, 5, 0), (1, 3, 2)]:
        best = np.argsort(-np.asarray(logits[row, node]))[:3]
        np.testing.assert_array_equal(state.ids[row, token], best)
        np.testing.assert_array_equal(state.logits[row, token], logits[row, node, best])
    np.testing.assert_array_equal(state.ids[0, 5], [0, 1, 2])  # never read


def test_prompt_lookup_copies_the_longest_and_then_the_latest_match():
    tree = Tree.named("0,1,00,10,000,0000")
    drafter = PromptLookup(longest=3)
    start = InitContext(
        jnp.zeros(1, jnp.int32), None, jnp.ones(1, jnp.int32), tree, 1, 9
    )
    state = drafter.init(None, start)
    #         0  1  2  3  4  5  6  7  8  9
    tokens = [1, 2, 3, 4, 5, 2, 3, 0, 2, 3]  # "2 3" before at 1 and at 5
    draft, _ = drafter.propose(None, state, a_round(tokens, tree, VOCAB))
    drafted = dict(zip(tree.rank_paths, np.asarray(draft.tokens[0]), strict=True))
    assert [drafted[(0,) * d] for d in (1, 2, 3, 4)] == [0, 2, 3, 0]  # periodic
    assert [drafted[1,], drafted[1, 0]] == [4, 5]
    assert draft.valid.all()
    draft, _ = drafter.propose(None, state, a_round([1, 2, 3], tree, VOCAB))
    assert draft.valid[0].tolist() == [True] + [False] * 6


def test_n_gram_probabilities_are_counts_with_a_lower_order_prior():
    table = NgramTable(VOCAB, buckets=1 << 16, width=VOCAB)
    corpus = np.random.default_rng(0).integers(VOCAB, size=(4, 30))
    counts = table.fit(corpus)
    alone = np.bincount(corpus.ravel(), minlength=VOCAB) + 0.1
    pairs = np.zeros((VOCAB, VOCAB))
    triples = np.zeros((VOCAB, VOCAB, VOCAB))
    for tokens in corpus:
        np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
        np.add.at(triples, (tokens[1:-1], tokens[:-2], tokens[2:]), 1)
    for first in range(VOCAB):
        for second in range(VOCAB):
            p = alone / alone.sum()
            for successors in (pairs[first], triples[first, second]):
                p = (successors + p) / (successors.sum() + 1)
            log_p = table._log_probs(counts, jnp.int32(first), jnp.int32(second))
            np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-4)


def test_n_grams_read_the_grid_and_their_own_path():
    table = NgramTable(VOCAB, (1, 3), 1 << 16, VOCAB)
    tree = Tree.named("0,1,00,000,0000")
    start = InitContext(
        jnp.zeros(1, jnp.int32), None, jnp.ones(1, jnp.int32), tree, 1, 20
    )
    tokens = [1, 2, 3, 4, 5, 0, 1, 2]
    counts, _, counted = table.propose(
        None, table.init(None, start), a_round(tokens, tree, VOCAB)
    )[1]
    assert int(counted[0]) == len(tokens)
    fitted = table.fit(jnp.asarray([tokens]))
    for x, y in zip(jax.tree.leaves(counts), jax.tree.leaves(fitted), strict=True):
        np.testing.assert_array_equal(x[0], y)
    log_probs, path = table.node_log_probs(counts, jnp.asarray([tokens]), counted, 4)
    logits, path = log_probs(0, jnp.array([[2]]), path)  # the root; 0 is above the next
    one = jax.tree.map(lambda x: x[0], counts)
    np.testing.assert_allclose(
        logits[0, 0], table._log_probs(one, jnp.int32(2), jnp.int32(0)), rtol=1e-5
    )
    for depth, token, above in [(1, 5, 1), (2, 3, 2), (3, 0, 5), (4, 1, 3)]:
        logits, path = log_probs(depth, jnp.array([[token]]), path)
        expected = table._log_probs(one, jnp.int32(token), jnp.int32(above))
        np.testing.assert_allclose(logits[0, 0], expected, rtol=1e-5)


def cycle_target(length):
    """Target whose greedy text repeats itself."""
    target, params = toy_target(length), toy_params(length, 200)

    def forward(params, cache, tokens, positions, mask):
        logits, features, cache = target.forward(params, cache, tokens, positions, mask)
        return 9.0 * jax.nn.one_hot((tokens + 1) % length, length), features, cache

    def prefill(params, prompt, extra):
        first = target.prefill(params, prompt, extra)
        return first._replace(logits=jax.nn.one_hot(jnp.zeros(len(prompt)), length))

    return replace(target, forward=forward, prefill=prefill, rescore=None), params


@pytest.mark.parametrize("drafter", [Lookahead(5, 4, 4, 2), PromptLookup(2)], ids=str)
def test_repeating_text_is_accepted(drafter):
    target, params = cycle_target(5)
    tree = getattr(drafter, "tree", Tree.chain(3))
    _, state = run_rounds(
        target,
        params,
        drafter,
        None,
        tree,
        jnp.zeros((2, 1), jnp.int32),
        length=60,
        batch=2,
        sampling=Sampling.create(2, temperature=0.0),
        order=("temperature",),
    )
    assert (state.tokens[:, :60] == jnp.arange(60) % 5).all()
    assert (
        state.stats.calls < 30
    ).all()  # 60 tokens; four per call once the cycle repeats


@pytest.mark.slow
def test_masks_attend_to_committed_tokens_and_their_own_block():
    """A draft equals one pass over the committed tokens and the masks."""
    tree, block = Tree.chain(3), 3
    drafter = Deer(toy_target(VOCAB), block, VOCAB)
    sampling = Sampling.create(ROWS)
    engine, state = after_rounds(
        4, toy_target(VOCAB), PARAMS, drafter, PARAMS, tree, PROMPT, sampling
    )
    ctx = next_round(engine, state, sampling)
    draft, _ = drafter.propose(PARAMS, state.drafter, ctx)
    for b in range(ROWS):
        prompt = PROMPT[b][PROMPT[b] >= 0]
        tokens = jnp.concatenate([prompt, state.tokens[b, : state.length[b]]])
        tokens = jnp.concatenate([tokens, jnp.full(block, VOCAB)])
        total = PARAMS["values"][tokens, jnp.arange(len(tokens))].sum(axis=0)
        expected = jax.nn.log_softmax(jnp.tanh(total) @ PARAMS["head"])
        for depth in range(tree.depth):
            np.testing.assert_allclose(draft.log_q[b, depth], expected, atol=1e-4)
