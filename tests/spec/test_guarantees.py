"""What each rule promises about how much it accepts, and what it never emits."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.spec import optimal_acceptance
from jaxspec.spec.draft import Draft
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import draw_noise, row_keys
from jaxspec.spec.sampling import keep_top_k
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Block, Coupled, GreedySet, KSeq, Rejection
from jaxspec.testing.enumeration import Conditionals, all_drafts
from tests.spec.test_acceptance import transport

SIBLINGS = {1: named_tree("0"), 2: named_tree("0,1"), 3: named_tree("0,1,2")}
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
    "rule, selection, tree", LOSSLESS.values(), ids=LOSSLESS
)


@dataclass
class Batch:
    """Every draft of several drafters, as the rows of one batch."""

    draft: Draft
    log_p: jax.Array  # [B, N, V]
    chance: np.ndarray
    ends: np.ndarray  # where the rows of the next drafter begin
    tree: Tree

    def mean(self, of_rows):
        """Expectation over the drafts of each drafter."""
        return np.array([x.sum() for x in np.split(self.chance * of_rows, self.ends)])

    def kept(self, rule):
        """Expected number of drafted tokens that are kept, for each drafter."""
        law = rule.law(self.log_p, self.draft, self.tree)
        return self.mean(np.asarray(law.stop) @ self.tree.depths)


def batch(laws, tree, selection):
    """All drafts of each `(p, q)` of `laws`, with the target's scores at each node."""
    tree = named_tree(tree) if isinstance(tree, str) else tree
    drafts = [all_drafts(q, tree, selection) for _, q in laws]
    scores = []
    for (p, _), found in zip(laws, drafts, strict=True):
        tokens = np.asarray(found.draft.tokens)
        lines = [tree.paths[n][1 : tree.depths[n] + 1] for n in range(tree.size)]
        scores.append(np.stack([p.after(tokens[:, line]) for line in lines], axis=1))
    with np.errstate(divide="ignore"):
        log_p = jnp.log(jnp.asarray(np.concatenate(scores)))
    return Batch(
        jax.tree.map(lambda *x: jnp.concatenate(x), *(x.draft for x in drafts)),
        log_p,
        np.concatenate([x.chance for x in drafts]),
        np.cumsum([len(x.chance) for x in drafts])[:-1],
        tree,
    )


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
    return tuple(np.stack([law.tables[0] for law in side]) for side in zip(*laws))


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
    "rule, selection",
    [
        (Rejection(), "without_replacement"),
        (Rejection(), "with_replacement"),
        (KSeq(), "with_replacement"),
        (Coupled(), "coupled"),
        (Coupled(), "with_replacement"),
    ],
    ids=str,
)
def test_no_rule_accepts_more_than_the_optimum(double, rule, selection, k):
    laws = random_laws(20, 4, 1) + random_laws(20, 4, 1, zeros=0.4)
    accepted = batch(laws, SIBLINGS[k], selection).kept(rule)
    best = optimum(laws, k, selection)
    assert (accepted <= best + 1e-9).all()
    if k == 1 and not isinstance(rule, Coupled):
        np.testing.assert_allclose(accepted, best, rtol=0, atol=1e-9)
    else:
        assert (accepted < best - 1e-3).any()


@DRAFTS
def test_kseq_is_within_its_factor_of_the_optimum(double, k):
    laws = random_laws(30, 4, 1) + random_laws(30, 4, 1, zeros=0.4)
    accepted = batch(laws, SIBLINGS[k], "with_replacement").kept(KSeq())
    best = optimum(laws, k, "with_replacement")
    assert (accepted >= (1 - 1 / np.e) * best - 1e-9).all()


@pytest.mark.parametrize("rule", [Rejection(), Block(), KSeq()], ids=str)
def test_one_draft_is_kept_as_often_as_the_laws_overlap(double, rule):
    laws = random_laws(20, 5, 1) + random_laws(20, 5, 1, zeros=0.4)
    p, q = first_tokens(laws)
    accepted = batch(laws, "0", "with_replacement").kept(rule)
    distance = np.abs(p - q).sum(-1) / 2
    np.testing.assert_allclose(accepted, 1 - distance, rtol=0, atol=1e-9)


@DRAFTS
def test_greedy_set_reaches_the_optimum_of_its_own_drafts(double, k):
    laws = random_laws(20, 5, 1) + random_laws(20, 5, 1, zeros=0.4)
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
    laws = random_laws(20, 5, 1)
    p, q = first_tokens(laws)
    held = np.take_along_axis(p, np.argsort(-q)[:, :k], axis=-1).sum(-1)
    top = batch(laws, SIBLINGS[k], "top")
    for rule in (Rejection(), Coupled()):
        np.testing.assert_allclose(top.kept(rule), held, rtol=0, atol=1e-9)


def test_mean_acceptance_ranks_the_rules_as_published(double):
    laws = random_laws(60, 5, 1)

    def mean(rule, selection):
        return batch(laws, SIBLINGS[3], selection).kept(rule).mean()

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
    noise = draw_noise(row_keys(0, rows), jnp.tile(jnp.arange(2), (rows, 1)), 2, 5)
    token = jnp.argmax(jnp.log(q) + noise.coupled[:, 0], axis=-1)
    draft = Draft(
        jnp.stack([jnp.zeros_like(token), token], 1), jnp.ones((rows, 2), bool)
    )
    log_p = jnp.broadcast_to(jnp.log(p), (rows, 2, 5))
    accepted = float(Coupled().verify(log_p, draft, tree, noise).accepted.mean())
    distance, error = np.abs(p - q).sum() / 2, 5 * 0.5 / np.sqrt(rows)
    assert accepted > (1 - distance) / (1 + distance) - error
    assert accepted < 1 - distance + error
    assert accepted > (p * q).sum() + error  # drafted without sight of the noise


# Drafters that are perfect, and drafters that are useless.


@pytest.mark.parametrize("tree", ["0", "0,1,2", "0,1,00", "0,1,00,01,10", "chain-3"])
@pytest.mark.parametrize("selection", ["without_replacement", "with_replacement"])
def test_everything_a_perfect_drafter_draws_is_kept(tree, selection):
    tree = named_tree(tree)
    laws = [
        (p, Conditionals(p.tables[:-1]))
        for zeros in (0.0, 0.5)
        for p in (Conditionals.random(3, tree.depth + 1, 5, zeros=zeros),)
    ]
    perfect = batch(laws, tree, selection)
    rules = [Rejection(), Block()] if tree.width == 1 else [Rejection()]
    for rule in rules:
        law = rule.law(perfect.log_p, perfect.draft, tree)
        assert np.isfinite(law.stop).all() and np.isfinite(law.final).all()
        first = tree.depths == tree.depth  # the first children all the way down
        kept = np.asarray(law.stop)[:, np.argmax(first)]
        np.testing.assert_allclose(kept, 1, atol=1e-5)


@EVERY_RULE
def test_nothing_is_kept_of_a_drafter_that_is_always_wrong(rule, selection, tree):
    p = Conditionals.constant([0.2, 0.8, 0, 0], 3)
    q = Conditionals.constant([0, 0, 0.7, 0.3], 2)
    wrong = batch([(p, q)], tree, selection)
    law = rule.law(wrong.log_p, wrong.draft, wrong.tree)
    assert (np.asarray(law.stop) == np.eye(wrong.tree.size)[0]).all()
    corrected = np.asarray(law.final)[:, 0]
    np.testing.assert_allclose(corrected, np.tile(p.tables[0], (len(corrected), 1)))


@EVERY_RULE
def test_what_the_target_never_says_is_never_emitted(rule, selection, tree):
    rng = np.random.default_rng(0)
    drafts = batch(random_laws(4, 3, 2), tree, selection)
    raw = jnp.asarray(rng.normal(size=drafts.log_p.shape), jnp.float32)
    impossible = batch(random_laws(4, 3, 2, zeros=0.4), tree, selection)
    filtered = keep_top_k(raw, jnp.full((len(raw), 1, 1), 2))
    for log_p, draft, shape in (
        (filtered, drafts.draft, drafts.tree),
        (impossible.log_p, impossible.draft, impossible.tree),
    ):
        never = np.asarray(log_p) == -np.inf
        assert never.any()
        law = rule.law(log_p, draft, shape)
        assert (np.asarray(law.final)[never] == 0).all()
        for n in range(1, shape.size):
            token = np.asarray(draft.tokens)[:, n]
            banned = never[np.arange(len(token)), shape.parents[n], token]
            assert (np.asarray(law.stop)[banned][:, shape.ancestors[:, n]] == 0).all()
        np.testing.assert_allclose(np.sum(law.stop, axis=-1), 1, atol=1e-5)


# Greedy rows.


def greedy_output(log_p, draft, tree):
    """The node where following the likeliest tokens leaves the draft, and the next."""
    best, tokens = np.argmax(log_p, axis=-1), np.asarray(draft.tokens)
    last = np.zeros(len(best), int)
    for b in range(len(best)):
        for n in range(1, tree.size):
            follows = tree.parents[n] == last[b] and draft.valid[b, n]
            if follows and tokens[b, n] == best[b, last[b]]:
                last[b] = n
    return last, best[np.arange(len(best)), last]


@EVERY_RULE
def test_greedy_rows_follow_the_likeliest_tokens_beside_sampled_rows(
    rule, selection, tree
):
    drafts = batch(random_laws(4, 3, 2, zeros=0.3), tree, selection)
    draft, tree, rows = drafts.draft, drafts.tree, len(drafts.chance)
    log_p = jnp.asarray(np.random.default_rng(1).normal(size=drafts.log_p.shape))
    greedy = jnp.arange(rows) % 3 > 0
    law = rule.law(log_p, draft, tree, greedy=greedy)
    last, token = greedy_output(log_p, draft, tree)
    sure = np.asarray(greedy)
    stop, final = np.asarray(law.stop), np.asarray(law.final)
    np.testing.assert_array_equal(stop[sure], np.eye(tree.size)[last[sure]])
    at_end = final[np.arange(rows), last]
    np.testing.assert_array_equal(at_end[sure], np.eye(3)[token[sure]])

    sampled = rule.law(log_p, draft, tree)
    np.testing.assert_array_equal(stop[~sure], np.asarray(sampled.stop)[~sure])
    np.testing.assert_array_equal(final[~sure], np.asarray(sampled.final)[~sure])

    positions = jnp.tile(jnp.arange(tree.depth + 1), (rows, 1))
    noise = draw_noise(row_keys(0, rows), positions, tree.size, 3, greedy)
    verdict = rule.verify(log_p, draft, tree, noise)
    np.testing.assert_array_equal(verdict.path[:, -1][sure], last[sure])
    np.testing.assert_array_equal(verdict.next_token[sure], token[sure])


# What a rule cannot judge exactly it refuses, and says what to do instead.


def some_draft(tree, selection):
    tree = named_tree(tree)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(4, size=(2, tree.size)), jnp.int32)
    log_q = jnp.log(jnp.asarray(rng.dirichlet(np.ones(4), (2, len(tree.internal)))))
    valid = jnp.ones(tokens.shape, bool)
    return Draft(tokens, valid, log_q=log_q, drawn=selection), tree


SAMPLED = [
    (Rejection(), "without_replacement"),
    (Rejection(), "with_replacement"),
    (KSeq(), "with_replacement"),
    (GreedySet(), "top_and_sample"),
]


def refuses(rule, draft, tree, words):
    log_p = jnp.zeros((2, tree.size, 4))
    with pytest.raises(ConfigError, match=words):
        rule.law(log_p, draft, tree)
    law = Coupled().law(log_p, draft, tree)  # which any draft will do for
    np.testing.assert_allclose(np.sum(law.stop, axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "rule, drawn, wanted",
    [
        (Rejection(), "top_and_sample", "without_replacement"),
        *((KSeq(), x, "with_replacement") for x in ("without_replacement", "top")),
        *((GreedySet(), x, "top_and_sample") for x in ("top", "with_replacement")),
        *((Block(), x, "without_replacement") for x in ("coupled", "top", "guess")),
    ],
    ids=str,
)
def test_refuses_candidates_chosen_in_another_way(rule, drawn, wanted):
    words = f"{wanted}.* not {drawn}; set Engine.selection='{wanted}'.* or use Coupled"
    refuses(rule, *some_draft("chain-2", drawn), words)
    assert rule.selection == wanted


@pytest.mark.parametrize(
    "rule, drawn", [*SAMPLED, (Block(), "without_replacement")], ids=str
)
def test_refuses_samples_that_were_dropped_for_what_they_are(rule, drawn):
    draft, tree = some_draft("chain-2", drawn)
    wanted = jnp.array([[True, True, False]] * 2)
    rule.law(jnp.zeros((2, 3, 4)), draft.keep(wanted, past=True), tree)
    refuses(rule, draft.keep(wanted, past=False), tree, "Stop after the token instead")


@pytest.mark.parametrize("tree", ["1", "0,2", "0,1,00,02"])
@pytest.mark.parametrize("rule, drawn", SAMPLED, ids=str)
def test_refuses_shapes_that_skip_a_sample(rule, drawn, tree):
    refuses(rule, *some_draft(tree, drawn), "children of ranks 0, 1, .* without a gap")


@pytest.mark.parametrize(
    "rule, drawn", [*SAMPLED, (Block(), "without_replacement")], ids=str
)
def test_refuses_samples_of_an_unknown_law(rule, drawn):
    draft, tree = some_draft("chain-2", drawn)
    refuses(rule, replace(draft, log_q=None), tree, r"Draft\.log_q")


@pytest.mark.parametrize("tree", ["0,1", "0,00,01"])
def test_block_refuses_trees(tree):
    draft = some_draft(tree, "without_replacement")
    refuses(Block(), *draft, r"chains alone; use Tree\.chain")


@pytest.mark.parametrize("drawn", ["guess", "top", "coupled"])
def test_rejection_judges_given_tokens_in_any_shape(drawn):
    draft, tree = some_draft("0,2,00,22", drawn)
    draft = draft.keep(draft.tokens != 3, past=False)
    log_p = jnp.asarray(np.random.default_rng(2).normal(size=(2, tree.size, 4)))
    law = Rejection().law(log_p, replace(draft, log_q=None), tree)
    blind = Coupled().law(log_p, draft, tree)
    np.testing.assert_allclose(law.stop, blind.stop, atol=1e-6)
    np.testing.assert_allclose(law.final, blind.final, atol=1e-6)


# What runs is drawn from the law.


def too_far(counts, expected):
    """Whether a chi-square is five of its standard deviations above its mean."""
    possible = expected > 0
    if counts[~possible].any():
        return True
    chi_square = (np.square(counts - expected)[possible] / expected[possible]).sum()
    freedom = possible.sum() - 1
    return chi_square > freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "rule, tree", [(Rejection(), "0,1,00"), (Block(), "chain-2")], ids=str
)
def test_verify_draws_from_the_law(rule, tree, seed):
    rows, vocab_size = 40_000, 4
    one = batch(random_laws(1, vocab_size, 2), tree, "without_replacement")
    # Any one draft whose outcomes are all to be seen.
    at_stake = np.min(rule.law(one.log_p, one.draft, one.tree).stop, axis=-1)
    row = int(np.argmax(at_stake))
    assert at_stake[row] > 0.01

    def repeated(x):
        return jnp.repeat(x[row : row + 1], rows, axis=0)

    draft, log_p = jax.tree.map(repeated, (one.draft, one.log_p))
    positions = jnp.tile(jnp.arange(3), (rows, 1))
    noise = draw_noise(row_keys(seed, rows), positions, one.tree.size, vocab_size)
    verdict = rule.verify(log_p, draft, one.tree, noise)
    counts = np.zeros((one.tree.size, vocab_size))
    np.add.at(counts, (verdict.path[:, -1], verdict.next_token), 1)

    def expected(log_p):
        law = rule.law(log_p[:1], jax.tree.map(lambda x: x[:1], draft), one.tree)
        return rows * np.asarray(law.stop[0, :, None] * law.final[0], np.float64)

    assert not too_far(counts, expected(log_p))
    assert too_far(counts, expected(1.1 * log_p))  # a target a little sharper

    tokens, count = verdict.emitted(draft)
    last = one.tree.paths[verdict.path[:, -1]]
    for d in range(one.tree.depth):
        here = np.asarray(count) > d + 1
        drafted = np.take_along_axis(np.asarray(draft.tokens), last, axis=1)[:, d + 1]
        np.testing.assert_array_equal(tokens[here, d], drafted[here])
    np.testing.assert_array_equal(
        tokens[np.arange(rows), count - 1], verdict.next_token
    )
