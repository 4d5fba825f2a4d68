"""LANTERN against the published walk in plain Python, outcome by outcome."""

from dataclasses import replace
from itertools import takewhile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.precision import use_x64
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Lantern, Rejection
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.testing.drafts import Conditionals, all_drafts
from jaxspec.testing.enumeration import assert_lossless, distortion
from tests.speculative.verify.walks import (
    CHAIN,
    FORK,
    as_given,
    assert_follows,
    codebook,
    normalized,
    random_round,
    relaxed_probability,
    sorted_neighbors,
)

WIDE = Tree.from_paths([(0,), (1,), (2,)])
BUDGETS = [{"delta": 0.3}, {"lam": 3.0}]


def published(near, *, k, residual, fallback, delta=None, lam=None):
    """LANTERN's acceptance and residuals, as `accept` and `reject` of `walk`."""

    def relaxed_mass(p, x):
        return relaxed_probability(p, x, near, k=k, delta=delta, lam=lam)

    def accept(p, q, x, node):
        return min(1.0, relaxed_mass(p, x)[0] / (1.0 if q is None else q[x]))

    def reject(p, q, x, node):
        relaxed = relaxed_mass(p, x)[1] >= 1
        around = near[x][: k + 1] if relaxed else []  # one more than were tested
        spared = [0.0 if y in around else 1.0 for y in range(len(p))]
        one_hot = [float(y == x) for y in range(len(p))]
        drawn = one_hot if q is None else q
        kind = residual
        if kind == "published":
            kind = "zero_target" if q is None else "keep_target"
        if kind == "zero_target":
            left = [m * s * (1 - o) for m, s, o in zip(p, spared, one_hot, strict=True)]
        elif kind == "keep_target":
            left = [m - d * s for m, d, s in zip(p, drawn, spared, strict=True)]
        elif kind == "drop_target":
            left = [m * s - d for m, d, s in zip(p, drawn, spared, strict=True)]
        else:
            left = [m - min(drawn[y], relaxed_mass(p, y)[0]) for y, m in enumerate(p)]
        uniform = [1 / len(p)] * len(p)
        otherwise = uniform if fallback == "uniform" else p
        return normalized([max(m, 0.0) for m in left], otherwise)

    return accept, reject


@pytest.mark.variants(1)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize(
    ("tree", "fallback"),
    [(CHAIN, "uniform"), (FORK, "uniform"), (FORK, "target"), (WIDE, "target")],
    ids=["chain", "fork", "fork-target", "wide"],
)
def test_outcome_is_that_of_the_published_walk(tree, budget, fallback):
    k, near, outcomes = 3, sorted_neighbors(codebook()), {}
    params = {"neighbors": neighbor_table(codebook(), k)}
    with use_x64(True):
        log_p, draft, p, q = random_round(tree)
        for residual in (
            "published",
            "zero_target",
            "keep_target",
            "drop_target",
            "optimal",
        ):
            released = {"fallback": fallback, "filtered": "published"}
            verifier = Lantern(k, residual=residual, **released, **budget)
            outcome = outcomes[residual] = verifier.outcome(
                log_p, draft, tree, params=params
            )
            steps = published(near, k=k, residual=residual, fallback=fallback, **budget)
            assert_follows(outcome, tree, draft, p, q, *steps)
            if residual in ("published", "zero_target", "optimal"):
                outcome = verifier.outcome(log_p, as_given(draft), tree, params=params)
                assert_follows(outcome, tree, as_given(draft), p, q, *steps)
    # Control: the four residuals give different outcomes here.
    forms = [np.asarray(outcomes[x].final) for x in list(outcomes)[1:]]
    for i, one in enumerate(forms):
        assert not any(np.allclose(one, other) for other in forms[:i])
    np.testing.assert_array_equal(
        outcomes["published"].final, outcomes["keep_target"].final
    )


def line_outcome(p, token, verifier):
    """Stop `[N]` and final `[N, V]` for one given child; embeddings on a line."""
    tree = Tree.chain(1)
    line = np.cumsum(1.1 ** np.arange(len(p)))[:, None]  # gaps grow: no ties
    params = {"neighbors": neighbor_table(line, verifier.k)}
    with use_x64(True):
        log_p = jnp.log(jnp.broadcast_to(jnp.asarray(p), (1, 2, len(p))))
        draft = Draft(jnp.array([[0, token]]), jnp.ones((1, 2), bool), selection="top")
        outcome = verifier.outcome(log_p, draft, tree, params=params)
        return np.asarray(outcome.stop)[0], np.asarray(outcome.final)[0]


def test_one_neighbor_more_is_zeroed_than_was_tested():
    p = [0.1, 0.05, 0.2, 0.3, 0.35]
    stop, final = line_outcome(p, 0, Lantern(k=1, delta=0.5))
    np.testing.assert_allclose(stop, [0.85, 0.15])  # p of tokens 0 and 1, not 2
    np.testing.assert_allclose(final[0] * 0.65, [0, 0, 0, 0.3, 0.35], atol=1e-12)
    # If no neighbor fits the budget, none is zeroed.
    _, final = line_outcome(p, 0, Lantern(k=1, delta=0.01))
    np.testing.assert_allclose(final[0] * 0.9, [0, *p[1:]], atol=1e-12)


def test_a_near_token_over_the_budget_excludes_farther_ones():
    stop, _ = line_outcome([0.1, 0.6, 0.01, 0.01, 0.28], 0, Lantern(k=3, delta=0.2))
    assert stop[1] == pytest.approx(0.1)


def test_a_filtered_token_is_accepted_for_its_neighbors_only_as_published():
    p, verifier = [0.0, 0.1, 0.2, 0.3, 0.4], Lantern(k=2, delta=0.31)
    assert line_outcome(p, 0, verifier)[0][1] == 0
    released = replace(verifier, filtered="published")
    assert line_outcome(p, 0, released)[0][1] == pytest.approx(0.3)
    assert line_outcome(p, 0, replace(released, delta=None, lam=9.0))[0][1] == 0


def test_an_empty_residual_is_replaced_by_the_fallback():
    p = [0.3, 0.5, 0.2, 0.0, 0.0, 0.0]
    _, uniform = line_outcome(p, 0, Lantern(k=1, delta=0.5, fallback="uniform"))
    np.testing.assert_allclose(uniform[0], 1 / 6)  # filtered tokens included
    _, target = line_outcome(p, 0, Lantern(k=1, delta=0.5))
    np.testing.assert_allclose(target[0], p, atol=1e-12)


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "budget", [{"delta": 0.2}, {"lam": 3.0}, {"lam": 1.0}], ids=str
)
def test_tokens_outside_of_the_codebook_have_no_neighbors(budget):
    """Structural tokens get plain rejection sampling, for any budget."""
    k, first, vocab = 3, 2, 9
    table = neighbor_table(codebook(6), k).for_vocabulary(vocab, first)
    codes = [[y + first for y in near] for near in sorted_neighbors(codebook(6))]
    near = [[]] * first + codes + [[]] * (vocab - first - len(codes))
    with use_x64(True):
        log_p, draft, p, q = random_round(WIDE, vocab=vocab, zeros=0.0)
        for residual in ("keep_target", "zero_target", "optimal"):
            verifier = Lantern(k, residual=residual, fallback="uniform", **budget)
            outcome = verifier.outcome(log_p, draft, WIDE, params={"neighbors": table})
            steps = published(
                near, k=k, residual=residual, fallback="uniform", **budget
            )
            assert_follows(outcome, WIDE, draft, p, q, *steps)


def greedy_walk(tree, tokens, valid, logits, near, *, k, **budget):
    """Result at temperature 0: the last accepted node and the token after it."""
    ok = [True] + [False] * (tree.size - 1)
    for n in range(1, tree.size):
        row = logits[tree.parents[n]]
        p = np.exp(row - row.max())
        p, x = p / p.sum(), tokens[n]
        p[x] = relaxed_probability(p.copy(), x, near, k=k, **budget)[0]
        ok[n] = bool(valid[n] and p.argmax() == x)
    leaves = [n for n in range(tree.size) if n not in tree.parents]
    rows = sorted(tree.paths[n][1 : tree.depths[n] + 1].tolist() for n in leaves)
    kept = max(([*takewhile(ok.__getitem__, row)] for row in rows), key=len)
    last = kept[-1] if kept else 0
    return last, int(logits[last].argmax())


@pytest.mark.variants(1)
@pytest.mark.parametrize("budget", [{"delta": 0.2}, {"lam": 2.0}], ids=str)
@pytest.mark.parametrize("tree", [CHAIN, FORK], ids=["chain", "fork"])
def test_greedy_sequences_accept_tokens_whose_relaxed_probability_is_greatest(
    tree, budget
):
    rows, vocab, k = 30, 7, 3
    rng = np.random.default_rng(3)
    # Integer logits: the relaxed probability often ties with the greatest one.
    logits = rng.integers(-1, 2, size=(rows, tree.size, vocab)).astype(float)
    tokens = rng.integers(vocab, size=(rows, tree.size)).astype(np.int32)
    valid = rng.random((rows, tree.size)) < 0.9
    greedy = np.arange(rows) % 3 > 0
    draft = Draft(jnp.asarray(tokens), jnp.asarray(valid))
    near = sorted_neighbors(codebook())
    params = {"neighbors": neighbor_table(codebook(), k)}
    verifier = Lantern(k, **budget)
    with use_x64(True):
        log_p = jnp.asarray(logits)
        outcome = verifier.outcome(log_p, draft, tree, jnp.asarray(greedy), params)
        drawn = verifier.outcome(log_p, draft, tree, None, params)
    relaxed = 0
    for row in np.flatnonzero(greedy):
        last, token = greedy_walk(
            tree, tokens[row], valid[row], logits[row], near, k=k, **budget
        )
        np.testing.assert_array_equal(outcome.stop[row], np.arange(tree.size) == last)
        np.testing.assert_array_equal(
            outcome.final[row, last], np.arange(vocab) == token
        )
        path = tree.paths[last][: tree.depths[last] + 1]
        best = logits[row, path[:-1]].argmax(-1)
        relaxed += (tokens[row, path[1:]] != best).sum()
    assert relaxed > 3
    np.testing.assert_array_equal(outcome.stop[~greedy], drawn.stop[~greedy])
    np.testing.assert_array_equal(outcome.final[~greedy], drawn.final[~greedy])


@pytest.mark.parametrize("tree", [CHAIN, FORK], ids=["chain", "fork"])
def test_lantern_without_relaxation_is_rejection(tree):
    params = {"neighbors": neighbor_table(codebook(), 3)}
    with use_x64(True):
        log_p, draft, _, _ = random_round(tree)
        for case in (draft, as_given(draft)):
            plain = Rejection().outcome(log_p, case, tree)
            verifier = Lantern(3, lam=1.0, residual="optimal", fallback="target")
            outcome = verifier.outcome(log_p, case, tree, params=params)
            np.testing.assert_allclose(outcome.stop, plain.stop, atol=1e-12)
            for n in range(tree.size):
                weight = np.asarray(plain.stop)[:, n, None]
                np.testing.assert_allclose(
                    weight * outcome.final[:, n], weight * plain.final[:, n], atol=1e-12
                )


def test_lantern_is_lossless_only_without_relaxation():
    vocab = 4
    p, q = Conditionals.random(vocab, 3, 0, zeros=0.2), Conditionals.random(vocab, 3, 1)
    drafts = all_drafts(q, FORK, "without_replacement")
    params = {"neighbors": neighbor_table(codebook(vocab), 2)}
    assert_lossless(Lantern(2, lam=1.0, residual="optimal"), p, drafts, params, draws=0)
    for verifier in (
        Lantern(2, delta=0.5),
        Lantern(2, delta=0.5, residual="optimal"),
        Lantern(2, lam=3.0, residual="optimal"),
    ):
        with pytest.raises(AssertionError, match="Lantern.outcome is biased"):
            assert_lossless(verifier, p, drafts, params, draws=0)


@pytest.mark.variants(1)
@pytest.mark.parametrize("budget", [{"delta": 0.15}, {"lam": 5.0}], ids=str)
def test_the_optimal_residual_adds_no_distortion_to_that_of_the_acceptance(budget):
    """Tokens that are accepted too often are the only distortion that remains."""
    k, vocab = 3, 8
    near = sorted_neighbors(codebook(vocab))
    params = {"neighbors": neighbor_table(codebook(vocab), k)}
    p, q = Conditionals.random(vocab, 2, 0), Conditionals.random(vocab, 1, 20)
    drafts = all_drafts(q, Tree.chain(1), "without_replacement")
    first, drawn = p.tables[0], q.tables[0]
    relaxed_mass = [
        relaxed_probability(first, x, near, k=k, **budget)[0] for x in range(vocab)
    ]
    floor = np.maximum(np.minimum(drawn, relaxed_mass) - first, 0).sum()
    found = {
        residual: distortion(Lantern(k, residual=residual, **budget), p, drafts, params)
        for residual in ("optimal", "zero_target", "keep_target", "drop_target")
    }
    assert found["optimal"] == pytest.approx(floor, abs=1e-6)
    assert min(found.values()) > floor - 1e-6
    assert floor > 0.05 and found["zero_target"] > floor + 0.01


def test_the_neighbor_table_equals_an_exhaustive_search():
    rng = np.random.default_rng(0)
    # Equal entries and equal distances.
    lattice = rng.integers(-2, 3, size=(40, 2)).astype(float)
    for codes in (rng.normal(size=(40, 3)), lattice):
        table = neighbor_table(codes, 6)
        assert table.most == 6 and table.ids.dtype == jnp.int32
        wanted = np.array([row[:7] for row in sorted_neighbors(codes)])
        np.testing.assert_array_equal(table.ids, wanted)
        apart = np.linalg.norm(codes[:, None] - codes[wanted], axis=-1)
        np.testing.assert_allclose(table.distances, apart, rtol=1e-5, atol=1e-6)
        for block in (1, 7, 40):
            again = neighbor_table(codes, 6, block=block)
            np.testing.assert_array_equal(again.ids, table.ids)


def test_normalized_and_stored_vectors_have_different_neighbors():
    codes = codebook(30) * np.linspace(0.2, 3, 30)[:, None]
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    table = neighbor_table(codes, 5, normalize=True)
    np.testing.assert_array_equal(
        table.ids, [row[:6] for row in sorted_neighbors(unit)]
    )
    assert (table.ids != neighbor_table(codes, 5).ids).any()
    # For unit vectors both tables are equal.
    np.testing.assert_array_equal(neighbor_table(unit, 5).ids, table.ids)


def test_image_tokens_may_start_later_in_a_vocabulary():
    table = neighbor_table(codebook(6), 2)
    moved = table.for_vocabulary(12, 4)
    np.testing.assert_array_equal(moved.ids[4:10], table.ids + 4)
    np.testing.assert_array_equal(moved.distances[4:10], table.distances)
    for token in (0, 3, 10, 11):
        assert moved.ids[token].tolist() == [token] * 3
        assert np.isinf(moved.distances[token]).all()
    for size, offset in ((9, 4), (12, -1)):
        with pytest.raises(ConfigError, match="do not fit"):
            table.for_vocabulary(size, offset)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lantern(k=0, delta=0.1), "k=0 is impossible; use a whole"),
        (lambda: Lantern(k=3), "or lam; none was given"),
        (lambda: Lantern(k=3, delta=0.1, lam=2.0), "both was given"),
        (lambda: Lantern(k=3), "additive delta or lam; none was given"),
        (lambda: Lantern(k=3, lam=float("inf")), "lam=inf is impossible"),
        (lambda: Lantern(k=3, delta=-0.1), "-0.1 is not in"),
        (lambda: Lantern(k=3, delta=5.0), "5.0 is not in"),
        (lambda: Lantern(k=3, delta=float("nan")), "nan is not in"),
        (lambda: Lantern(k=3, lam=0.5), "lam=0.5 is impossible; use a number from 1"),
        (lambda: Lantern(3, 0.1, residual="none"), "residual='none'; use one of"),
        (lambda: Lantern(3, 0.1, fallback="zero"), "fallback='zero'; use one of"),
        (lambda: neighbor_table(codebook(6), 0), "1 to 4 usable"),
        (lambda: neighbor_table(codebook(6), 5), "1 to 4 usable"),
    ],
)
def test_impossible_settings_raise_a_clear_error(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_unsuitable_drafts_and_tables_are_refused():
    log_p, draft, _, _ = random_round(CHAIN, rows=2)
    table = {"neighbors": neighbor_table(codebook(), 3)}
    plain, wider = Lantern(3, 0.1), Lantern(4, 0.1)
    subtract = Lantern(3, 0.1, residual="keep_target")
    drop = Lantern(3, 0.1, residual="drop_target")
    for verifier, other, params, words in (
        (plain, {}, None, r"needs params=\{'neighbors'"),
        (plain, {}, {}, r"needs params=\{'neighbors'"),
        (wider, {}, table, "tests 4 neighbors, but its table has 3; build a wider"),
        (subtract, {"selection": "top"}, table, "use 'zero_target' or 'optimal'"),
        (drop, {"selection": "guess"}, table, "use 'zero_target' or 'optimal'"),
        (plain, {"selection": "top_and_sample"}, table, "not top_and_sample"),
        (plain, {"log_q": None}, table, "needs the drafter's distribution"),
        (plain, {"pruned_by": "token"}, table, "drops a token because of its value"),
    ):
        with pytest.raises(ConfigError, match=words):
            verifier.outcome(log_p, replace(draft, **other), CHAIN, params=params)
    gap = Tree.from_paths([(1,), (1, 1)])
    with pytest.raises(ConfigError, match="without a gap"):
        plain.outcome(log_p, draft, gap, params=table)


@pytest.mark.parametrize("spread", [1e1, 1e3, 1e6, 1e15, 1e30])
@pytest.mark.parametrize("normalize", [False, True])
def test_neighbors_are_in_exact_order_whatever_the_norms(spread, normalize):
    """Entries whose norms span many powers of ten, some of them far from the origin."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(60, 4)) * spread ** rng.random((60, 1))
    codes[:20] += spread  # near each other, far from the rest
    codes = codes.astype(np.float32)
    wide = codes.astype(np.longdouble)
    if normalize:
        wide = wide / np.sqrt((wide**2).sum(-1, keepdims=True))
    apart = np.sqrt(((wide[:, None] - wide) ** 2).sum(-1))
    np.fill_diagonal(apart, np.inf)
    table = neighbor_table(codes, 9, normalize=normalize, block=16)
    found = np.take_along_axis(apart, np.asarray(table.ids), 1)
    np.testing.assert_allclose(found, np.sort(apart)[:, :10], rtol=1e-14)
    np.testing.assert_allclose(table.distances, found, rtol=1e-6)


def test_entries_too_far_apart_for_float32_have_finite_distances():
    most = np.finfo(np.float32).max
    table = neighbor_table(np.array([[most], [-most], [0.0], [1.0]]), 2)
    assert np.isfinite(table.distances).all()  # infinite: not an entry
    assert table.ids.tolist() == [[2, 3, 1], [2, 3, 0], [3, 0, 1], [2, 0, 1]]


@pytest.mark.slow
def test_a_score_of_infinity_is_certain():
    """Greedy and sampled sequences accept it; the control has a finite score."""
    params = {"neighbors": neighbor_table(codebook(), 3)}
    log_p = jnp.zeros((1, FORK.size, 7)).at[:, 0, 4].set(jnp.inf)
    draft = Draft(jnp.array([[0, 2, 4, 1, 3]]), jnp.ones((1, 5), bool))
    for greedy in (jnp.array([True]), jnp.array([False]), None):
        outcome = Lantern(3, delta=0.3).outcome(log_p, draft, FORK, greedy, params)
        assert (
            outcome.stop[0, 0] == 0
            and outcome.stop[0, 2] > 0
            and outcome.stop[0, 1] == 0
        )
        plain = Rejection().outcome(log_p, draft, FORK, greedy)
        assert plain.stop[0].tolist() == outcome.stop[0].tolist() or greedy is not None
        finite = jnp.where(jnp.isinf(log_p), 9.0, log_p)
        control = Rejection().outcome(finite, draft, FORK, None)
        assert 0 < control.stop[0, 0] < 0.1
