"""What each rule promises about how much it accepts, and what it never emits."""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.logits import process_logits
from jaxspec.core.noise import batch_keys, draw_noise
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Coupled, GreedySet, KSeq, Rejection
from jaxspec.speculative.verify.acceptance import optimal_acceptance
from jaxspec.testing.drafts import Conditionals, all_drafts
from tests.spec.test_acceptance import transport

SIBLINGS = {1: Tree.named("0"), 2: Tree.named("0,1"), 3: Tree.named("0,1,2")}
DRAFTS = pytest.mark.parametrize("k", SIBLINGS)
# A rule, what it takes, and the shape that the tests below draft for it.
LOSSLESS = {
    "Rejection": (Rejection(), "without_replacement", "0,1,00"),
    "Rejection, independent": (Rejection(), "with_replacement", "0,1,00"),
    "Rejection, given": (Rejection(), "top", "0,1,00"),
    "KSeq": (KSeq(), "with_replacement", "0,1,00"),
    "GreedySet": (GreedySet(), "top_and_sample", "0,1,00"),
    "Block": (Block(), "without_replacement", "chain-2"),
    "Coupled": (Coupled(), "coupled", "0,1,00"),
}
EVERY_RULE = pytest.mark.parametrize(
    "verifier, selection, tree", LOSSLESS.values(), ids=LOSSLESS
)


@dataclass
class Batch:
    """Every possible draft of several drafters, as the rows of one batch."""

    draft: Draft
    log_p: np.ndarray  # [B, N, V]
    chance: np.ndarray
    ends: np.ndarray  # where the rows of the next drafter begin
    tree: Tree

    def mean(self, of_rows):
        """Expectation over the drafts of each drafter."""
        return np.array([x.sum() for x in np.split(self.chance * of_rows, self.ends)])

    def kept(self, verifier):
        """Expected number of drafted tokens that are kept, for each drafter."""
        stop, _ = law_of(verifier, self.log_p, self.draft, self.tree)
        return self.mean(stop @ self.tree.depths)


def law_of(verifier, log_p, draft, tree, greedy=None):
    """A rule's law: `stop [B, N]` and `final [B, N, V]`."""
    rows = len(log_p)
    greedy = np.zeros(rows, bool) if greedy is None else greedy
    padded = -(-rows // 1024) * 1024  # few shapes, so that little is compiled
    law = compiled(verifier, "outcome", tree)(*repeated((log_p, draft, greedy), padded))
    return np.asarray(law.stop)[:rows], np.asarray(law.final)[:rows]


def repeated(rows, count):
    """The rows again and again, `count` in all."""
    return jax.tree.map(lambda x: x[np.arange(count) % len(x)], rows)


@cache
def compiled(verifier, method, tree):
    """`verifier.outcome` or `.verify`, of scores, a draft, and noise or greedy rows."""
    call = getattr(verifier, method)
    return jax.jit(lambda log_p, draft, given: call(log_p, draft, tree, given))


def batch(laws, tree, selection):
    """All drafts of each `(p, q)` of `laws`, with the target's scores at each node."""
    tree = Tree.named(tree) if isinstance(tree, str) else tree
    drafts = [possible(all_drafts(q, tree, selection)) for _, q in laws]
    scores = []
    for (p, _), found in zip(laws, drafts, strict=True):
        tokens = np.asarray(found.draft.tokens)
        lines = [tree.paths[n][1 : tree.depths[n] + 1] for n in range(tree.size)]
        scores.append(np.stack([p.after(tokens[:, line]) for line in lines], axis=1))
    with np.errstate(divide="ignore"):
        log_p = np.log(np.concatenate(scores))
    return Batch(
        jax.tree.map(lambda *x: np.concatenate(x), *(x.draft for x in drafts)),
        log_p,
        np.concatenate([x.chance for x in drafts]),
        np.cumsum([len(x.chance) for x in drafts])[:-1],
        tree,
    )


def possible(drafts):
    found = drafts.chance > 0
    draft = jax.tree.map(lambda x: np.asarray(x)[found], drafts.draft)
    return replace(drafts, draft=draft, chance=drafts.chance[found])


def random_laws(count, vocab_size, depth, zeros=0.0):
    """Targets and drafters that have nothing to do with each other."""
    return [
        (
            Conditionals.random(vocab_size, depth + 1, seed, zeros=zeros),
            Conditionals.random(vocab_size, depth, 1000 + seed, zeros=zeros),
        )
        for seed in range(count)
    ]


def first_tokens(laws):
    """The laws `[B, V]` of the token after the root: the target's, the drafter's."""
    return tuple(
        np.stack([law.tables[0] for law in side]) for side in zip(*laws, strict=True)
    )


def optimum(laws, k, selection):
    p, q = map(jnp.asarray, first_tokens(laws))
    return np.asarray(optimal_acceptance(p, q, k, selection == "with_replacement"))


@pytest.fixture
def double():
    """Laws in float64, so that bounds which are attained can be checked closely."""
    with jax.enable_x64(True):
        yield


# How much is accepted.


@DRAFTS
@pytest.mark.parametrize(
    "verifier, selection",
    [
        (Rejection(), "without_replacement"),
        (Rejection(), "with_replacement"),
        (KSeq(), "with_replacement"),
        (Coupled(), "coupled"),
        (Coupled(), "with_replacement"),
    ],
    ids=str,
)
def test_no_rule_accepts_more_than_the_optimum(double, verifier, selection, k):
    laws = random_laws(20, 4, 1) + random_laws(20, 4, 1, zeros=0.4)
    accepted = batch(laws, SIBLINGS[k], selection).kept(verifier)
    best = optimum(laws, k, selection)
    assert (accepted <= best + 1e-9).all()
    if k == 1 and not isinstance(verifier, Coupled):
        np.testing.assert_allclose(accepted, best, rtol=0, atol=1e-9)
    else:
        assert (accepted < best - 1e-3).any()


@DRAFTS
def test_kseq_is_within_its_factor_of_the_optimum(double, k):
    laws = random_laws(20, 4, 1) + random_laws(20, 4, 1, zeros=0.4)
    accepted = batch(laws, SIBLINGS[k], "with_replacement").kept(KSeq())
    best = optimum(laws, k, "with_replacement")
    assert (accepted >= (1 - 1 / np.e) * best - 1e-9).all()


@pytest.mark.parametrize("verifier", [Rejection(), Block(), KSeq()], ids=str)
def test_one_draft_is_kept_as_often_as_the_laws_overlap(double, verifier):
    laws = random_laws(20, 4, 1) + random_laws(20, 4, 1, zeros=0.4)
    p, q = first_tokens(laws)
    accepted = batch(laws, "0", "with_replacement").kept(verifier)
    distance = np.abs(p - q).sum(-1) / 2
    np.testing.assert_allclose(accepted, 1 - distance, rtol=0, atol=1e-9)


@DRAFTS
def test_greedy_set_reaches_the_optimum_of_its_own_drafts(double, k):
    laws = random_laws(20, 4, 1) + random_laws(20, 4, 1, zeros=0.4)
    accepted = batch(laws, SIBLINGS[k], "top_and_sample").kept(GreedySet())
    for p, q, found in zip(*first_tokens(laws), accepted, strict=True):
        top = [int(x) for x in np.argsort(-q)[: k - 1] if q[x] > 0]
        rest = q.copy()
        rest[top] = 0.0
        if rest.any():
            rest /= rest.sum()
            sets = {frozenset([*top, int(x)]): rest[x] for x in np.flatnonzero(rest)}
        else:
            sets = {frozenset(top): 1.0}
        assert abs(found - (p[top].sum() + np.minimum(p, rest).sum())) < 1e-9
        assert abs(found - transport(p, sets)) < 1e-8


@DRAFTS
def test_given_tokens_are_accepted_with_all_their_probability(double, k):
    laws = random_laws(20, 4, 1)
    p, q = first_tokens(laws)
    held = np.take_along_axis(p, np.argsort(-q)[:, :k], axis=-1).sum(-1)
    top = batch(laws, SIBLINGS[k], "top")
    for verifier in (Rejection(), Coupled()):
        np.testing.assert_allclose(top.kept(verifier), held, rtol=0, atol=1e-9)


def test_mean_acceptance_ranks_the_rules_as_published(double):
    laws = random_laws(30, 5, 1)

    def mean(verifier, selection):
        return batch(laws, SIBLINGS[3], selection).kept(verifier).mean()

    independent = mean(Rejection(), "with_replacement")
    kseq = mean(KSeq(), "with_replacement")
    distinct = mean(Rejection(), "without_replacement")
    greedy_set = mean(GreedySet(), "top_and_sample")
    assert independent < kseq < distinct
    assert independent < distinct - 0.05
    assert kseq < optimum(laws, 3, "with_replacement").mean()
    assert distinct < optimum(laws, 3, "without_replacement").mean() - 0.03
    assert (0.60 < independent < 0.80) and (0.70 < distinct < 0.88)
    assert greedy_set > independent


def test_block_never_keeps_less_than_rejection_and_mostly_more(double):
    laws = random_laws(20, 3, 3) + random_laws(20, 3, 3, zeros=0.3)
    chains = batch(laws, "chain-3", "without_replacement")
    block, one_by_one = chains.kept(Block()), chains.kept(Rejection())
    assert (block >= one_by_one - 1e-9).all()
    assert (block > one_by_one + 1e-3).sum() > 20


def test_shared_noise_is_accepted_more_often_than_blind_drafts_allow():
    # One drafted token is kept with chance at least (1 - TV) / (1 + TV) if it was
    # ranked by the noise that decides, and never more often than the optimum.
    p, q = np.random.default_rng(0).dirichlet(np.ones(5), size=2)
    rows, tree = 20_000, Tree.chain(1)

    @jax.jit
    def accepted(keys):
        noise = draw_noise(keys, jnp.tile(jnp.arange(2), (rows, 1)), tree.size, 5)
        token = jnp.argmax(jnp.log(q) + noise.coupled[:, 0], axis=-1)
        tokens = jnp.stack([jnp.zeros_like(token), token], axis=1)
        draft = Draft(tokens, jnp.ones((rows, 2), bool), selection="coupled")
        log_p = jnp.broadcast_to(jnp.log(p), (rows, 2, 5))
        return Coupled().verify(log_p, draft, tree, noise).accepted.mean()

    found = float(accepted(batch_keys(0, rows)))
    distance, error = np.abs(p - q).sum() / 2, 5 * 0.5 / np.sqrt(rows)
    assert found > (1 - distance) / (1 + distance) - error
    assert found < 1 - distance + error
    assert found > (p * q).sum() + error  # drafted without sight of the noise


# Drafters that are perfect, and drafters that are useless.


@pytest.mark.parametrize("tree", ["0,1,2", "0,1,00,01,10", "chain-3"])
@pytest.mark.parametrize("selection", ["without_replacement", "with_replacement"])
def test_everything_a_perfect_drafter_draws_is_kept(tree, selection):
    tree = Tree.named(tree)
    targets = [Conditionals.random(3, tree.depth + 1, 5, zeros=x) for x in (0.0, 0.5)]
    perfect = batch(
        [(p, Conditionals(p.tables[:-1])) for p in targets], tree, selection
    )
    for verifier in [Rejection(), Block()] if tree.width == 1 else [Rejection()]:
        stop, final = law_of(verifier, perfect.log_p, perfect.draft, tree)
        assert np.isfinite(stop).all() and np.isfinite(final).all()
        deepest = np.argmax(tree.depths)  # the first child of the first child
        np.testing.assert_allclose(stop[:, deepest], 1, atol=1e-5)


@EVERY_RULE
def test_nothing_is_kept_of_a_drafter_that_is_always_wrong(verifier, selection, tree):
    p = Conditionals.constant([0.2, 0.8, 0, 0], 3)
    q = Conditionals.constant([0, 0, 0.7, 0.3], 2)
    wrong = batch([(p, q)], tree, selection)
    stop, final = law_of(verifier, wrong.log_p, wrong.draft, wrong.tree)
    assert (stop == np.eye(wrong.tree.size)[0]).all()
    corrected = final[:, 0]
    np.testing.assert_allclose(
        corrected, np.broadcast_to(p.tables[0], corrected.shape), rtol=1e-6
    )


@EVERY_RULE
def test_what_the_target_never_says_is_never_emitted(verifier, selection, tree):
    drafts = batch(random_laws(6, 3, 2, zeros=0.4), tree, selection)
    draft, tree, rows = drafts.draft, drafts.tree, np.arange(len(drafts.chance))
    logits = np.random.default_rng(0).normal(size=drafts.log_p.shape)
    sampling = Sampling.create(len(rows), top_k=2)
    top_2 = process_logits(jnp.asarray(logits), sampling, ("top_k",))
    for log_p in (drafts.log_p, np.asarray(top_2, np.float64)):
        never = log_p == -np.inf
        assert never.any()
        stop, final = law_of(verifier, log_p, draft, tree)
        assert (final[never] == 0).all()
        for n in range(1, tree.size):
            banned = never[rows, tree.parents[n], draft.tokens[:, n]]
            assert banned.any()
            assert (stop[banned][:, tree.ancestors[:, n]] == 0).all()


@EVERY_RULE
def test_laws_are_distributions_in_single_precision(verifier, selection, tree):
    drafts = batch(random_laws(20, 3, 2), tree, selection)
    for part in law_of(verifier, drafts.log_p, drafts.draft, drafts.tree):
        assert part.dtype == np.float32
        assert (part >= 0).all()
        np.testing.assert_allclose(part.sum(-1), 1, atol=1e-5)


# Greedy rows.


def greedy_output(log_p, draft, tree):
    """The node where following the likeliest tokens leaves the draft, and the next."""
    best = np.argmax(log_p, axis=-1)
    row, last = np.arange(len(best)), np.zeros(len(best), int)
    for n in range(1, tree.size):
        matches = draft.tokens[:, n] == best[row, last]
        here = (last == tree.parents[n]) & draft.valid[:, n] & matches
        last = np.where(here, n, last)
    return last, best[row, last]


ROWS = 20_000
NOISE = jax.jit(draw_noise, static_argnums=(2, 3))


def draws(verifier, log_p, draft, tree, greedy=None, seed=0):
    """What a rule decides for `ROWS` rows, each with noise of its own."""
    greedy = np.zeros(len(log_p), bool) if greedy is None else greedy
    log_p, draft, greedy = repeated((log_p, draft, greedy), ROWS)
    positions = np.tile(np.arange(tree.depth + 1), (ROWS, 1))
    keys = batch_keys(seed, ROWS)
    noise = NOISE(keys, positions, tree.size, log_p.shape[-1], greedy)
    return compiled(verifier, "verify", tree)(log_p, draft, noise)


@EVERY_RULE
def test_greedy_rows_follow_the_likeliest_tokens_beside_sampled_rows(
    verifier, selection, tree
):
    drafts = batch(random_laws(6, 3, 2, zeros=0.3), tree, selection)
    draft, tree, rows = drafts.draft, drafts.tree, len(drafts.chance)
    log_p = np.random.default_rng(1).normal(size=drafts.log_p.shape)
    last, token = greedy_output(log_p, draft, tree)
    assert len(set(last)) == tree.size  # every node is where some row leaves the draft
    greedy = np.arange(rows) % 3 > 0
    stop, final = law_of(verifier, log_p, draft, tree, greedy)
    emitted = stop[:, :, None] * final
    sure = np.zeros(emitted.shape, bool)
    sure[np.arange(rows), last, token] = True
    assert (emitted[greedy] > 0)[sure[greedy]].all()
    assert (emitted[greedy] == 0)[~sure[greedy]].all()

    of_sampled = law_of(verifier, log_p, draft, tree)
    np.testing.assert_array_equal(stop[~greedy], of_sampled[0][~greedy])
    np.testing.assert_array_equal(final[~greedy], of_sampled[1][~greedy])

    verdict = draws(verifier, log_p, draft, tree, greedy)
    ends, after = verdict.path[:rows, -1], verdict.next_token[:rows]
    np.testing.assert_array_equal(ends[greedy], last[greedy])
    np.testing.assert_array_equal(after[greedy], token[greedy])


# What a rule cannot judge exactly it refuses, and says what to do instead.


def some_draft(tree, selection):
    tree = Tree.named(tree)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(4, size=(2, tree.size)), jnp.int32)
    log_q = jnp.log(jnp.asarray(rng.dirichlet(np.ones(4), (2, len(tree.internal)))))
    valid = jnp.ones(tokens.shape, bool)
    return Draft(tokens, valid, log_q=log_q, selection=selection), tree


SAMPLED = [
    (Rejection(), "without_replacement"),
    (Rejection(), "with_replacement"),
    (KSeq(), "with_replacement"),
    (GreedySet(), "top_and_sample"),
]


def refuses(verifier, draft, tree, words):
    with pytest.raises(ConfigError, match=words):
        accepts(verifier, draft, tree)
    accepts(Coupled(), draft, tree)  # which any draft will do for


def accepts(verifier, draft, tree):
    log_p = jnp.zeros((2, tree.size, 4))
    jax.eval_shape(lambda draft: verifier.outcome(log_p, draft, tree), draft)


@pytest.mark.parametrize(
    "verifier, drawn, wanted",
    [
        (Rejection(), "top_and_sample", "without_replacement"),
        *((KSeq(), x, "with_replacement") for x in ("without_replacement", "top")),
        *((GreedySet(), x, "top_and_sample") for x in ("top", "with_replacement")),
        *((Block(), x, "without_replacement") for x in ("coupled", "top", "guess")),
    ],
    ids=str,
)
def test_refuses_candidates_chosen_in_another_way(verifier, drawn, wanted):
    words = f"{wanted}.* not {drawn}; set Engine.selection='{wanted}'.* or use Coupled"
    refuses(verifier, *some_draft("chain-2", drawn), words)
    assert verifier.selection == wanted


@pytest.mark.parametrize(
    "verifier, drawn", [*SAMPLED, (Block(), "without_replacement")], ids=str
)
def test_refuses_samples_that_were_dropped_for_what_they_are(verifier, drawn):
    draft, tree = some_draft("chain-2", drawn)
    wanted = jnp.array([[True, True, False]] * 2)
    accepts(verifier, draft.keep(wanted, past=True), tree)
    refuses(
        verifier, draft.keep(wanted, past=False), tree, "Stop after the token instead"
    )


@pytest.mark.parametrize("tree", ["1", "0,2", "0,1,00,02"])
@pytest.mark.parametrize("verifier, drawn", SAMPLED, ids=str)
def test_refuses_shapes_that_skip_a_sample(verifier, drawn, tree):
    refuses(
        verifier, *some_draft(tree, drawn), "children of ranks 0, 1, .* without a gap"
    )


@pytest.mark.parametrize(
    "verifier, drawn", [*SAMPLED, (Block(), "without_replacement")], ids=str
)
def test_refuses_samples_of_an_unknown_law(verifier, drawn):
    draft, tree = some_draft("chain-2", drawn)
    refuses(verifier, replace(draft, log_q=None), tree, r"Draft\.log_q")


@pytest.mark.parametrize("tree", ["0,1", "0,00,01"])
def test_block_refuses_trees(tree):
    draft = some_draft(tree, "without_replacement")
    refuses(Block(), *draft, r"chains alone; use Tree\.chain")


@pytest.mark.parametrize("drawn", ["guess", "top", "coupled"])
def test_rejection_judges_given_tokens_in_any_shape(drawn):
    draft, tree = some_draft("0,2,00,22", drawn)
    draft = draft.keep(draft.tokens != 3, past=False)
    log_p = np.random.default_rng(2).normal(size=(2, tree.size, 4))
    one_by_one = law_of(Rejection(), log_p, replace(draft, log_q=None), tree)
    for part, wanted in zip(
        one_by_one, law_of(Coupled(), log_p, draft, tree), strict=True
    ):
        np.testing.assert_allclose(part, wanted, atol=1e-6)


# What runs is drawn from the law.


def outcomes(verdict, size, vocab_size):
    """How often each node was the last one kept and each token came after it."""
    counts = np.zeros((size, vocab_size))
    np.add.at(counts, (verdict.path[:, -1], verdict.next_token), 1)
    return counts


def too_far(counts, expected):
    """Whether a chi-square is five of its standard deviations above its mean."""
    ever = expected > 0
    if counts[~ever].any():
        return True
    chi_square = (np.square(counts - expected)[ever] / expected[ever]).sum()
    freedom = ever.sum() - 1
    return chi_square > freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "verifier, tree", [(Rejection(), "0,1,00"), (Block(), "chain-2")], ids=str
)
def test_verify_draws_from_the_law_of_a_draft(verifier, tree):
    every = batch(random_laws(6, 3, 2), tree, "without_replacement")
    tree = every.tree
    stop, final = law_of(verifier, every.log_p, every.draft, tree)
    at = np.argmax(stop.min(-1))  # a draft that may well end at any of its nodes
    log_p, draft = jax.tree.map(lambda x: x[at : at + 1], (every.log_p, every.draft))
    for seed in (0, 1):
        verdict = draws(verifier, log_p, draft, tree, seed=seed)
        counts = outcomes(verdict, tree.size, 3)
        assert not too_far(counts, ROWS * stop[at, :, None] * final[at])
    # The same bound tells a target that is a little sharper.
    stop, final = law_of(verifier, 1.2 * every.log_p, every.draft, tree)
    assert too_far(counts, ROWS * stop[at, :, None] * final[at])

    tokens, count = map(np.asarray, verdict.emitted(draft))
    for d in range(tree.depth):
        kept = count > d + 1
        nodes = np.asarray(verdict.path)[kept, d + 1]
        np.testing.assert_array_equal(tokens[kept, d], draft.tokens[0, nodes])
    last = tokens[np.arange(ROWS), count - 1]
    np.testing.assert_array_equal(last, verdict.next_token)


@EVERY_RULE
def test_verify_draws_from_the_law_of_each_row(verifier, selection, tree):
    every = batch(random_laws(6, 3, 2), tree, selection)
    verdict = draws(verifier, every.log_p, every.draft, every.tree)
    counts = outcomes(verdict, every.tree.size, 3)

    def deviation(log_p):
        stop, final = law_of(verifier, log_p, every.draft, every.tree)
        chance = repeated(stop[:, :, None] * final, ROWS)
        spread = np.sqrt((chance * (1 - chance)).sum(0))
        return np.abs(counts - chance.sum(0)) / np.maximum(spread, 1e-9)

    assert (deviation(every.log_p) < 5).all()
    assert (deviation(1.5 * every.log_p) > 5).any()
