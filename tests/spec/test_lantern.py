"""LANTERN held to a plain-Python telling of the published walk, outcome by outcome."""

from collections import defaultdict
from dataclasses import replace
from itertools import takewhile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.spec.draft import Draft
from jaxspec.spec.neighbours import neighbour_table
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Lantern, Rejection
from jaxspec.testing.drafts import Conditionals, all_drafts
from jaxspec.testing.enumeration import assert_lossless, distortion

CHAIN = Tree.chain(2)
FORK = Tree.from_paths([(0,), (1,), (0, 0), (0, 1)])
WIDE = Tree.from_paths([(0,), (1,), (2,)])
BUDGETS = [{"delta": 0.3}, {"lam": 3.0}]


def kin_of(codebook):
    """All other codes of each code, nearest first, lower id on ties."""
    codes = np.asarray(codebook, np.float64)
    return [
        sorted(
            (j for j in range(len(codes)) if j != i),
            key=lambda j, i=i: (np.linalg.norm(codes[i] - codes[j]), j),
        )
        for i in range(len(codes))
    ]


def relaxed_probability(p, x, kin, *, k, delta=None, lam=None):
    """`p(x)` with the mass of the nearest codes that fit the budget; how many do."""
    budget = delta if lam is None else (lam - 1) * p[x]
    mass, fitting = 0.0, 0
    for y in kin[x][:k]:
        if mass + p[y] > budget:
            break
        mass, fitting = mass + p[y], fitting + 1
    return p[x] + mass, fitting


def normalised(x, otherwise):
    total = sum(x)
    return [mass / total for mass in x] if total > 0 else otherwise


def walk(tree, tokens, valid, p_after, q_after, accept, reject):
    """Every outcome of a round with its chance: `{(accepted..., next): chance}`.

    `accept(p, q, x, node)` is the chance to accept a child, `reject(p, q, x, node)`
    what its rejection leaves of `p`. `q` is None for children that were given.
    """
    outcomes = defaultdict(float)

    def at(node, path, chance):
        p = list(p_after[node])
        q = None if q_after is None else list(q_after[node])
        for child in sorted(
            (n for n in range(1, tree.size) if tree.parents[n] == node),
            key=lambda n: tree.ranks[n],
        ):
            x = int(tokens[child])
            if not valid[child] or (q is not None and q[x] <= 0):
                continue
            taken = accept(p, q, x, child)
            at(child, (*path, x), chance * taken)
            chance *= 1 - taken
            p = reject(p, q, x, child)
            if q is not None:  # drawn without replacement
                q[x] = 0.0
                q = normalised(q, q)
        for y, mass in enumerate(p):
            outcomes[*path, y] += chance * mass

    at(0, (), 1.0)
    return outcomes


def published(kin, *, k, residual, fallback, delta=None, lam=None):
    """LANTERN's test and its ways to go on, as `accept` and `reject` of `walk`."""

    def credit(p, x):
        return relaxed_probability(p, x, kin, k=k, delta=delta, lam=lam)

    def accept(p, q, x, node):
        return min(1.0, credit(p, x)[0] / (1.0 if q is None else q[x]))

    def reject(p, q, x, node):
        relaxed = credit(p, x)[1] >= 1
        around = kin[x][: k + 1] if relaxed else []  # one more than were tested
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
            left = [m - min(drawn[y], credit(p, y)[0]) for y, m in enumerate(p)]
        uniform = [1 / len(p)] * len(p)
        otherwise = uniform if fallback == "uniform" else p
        return normalised([max(m, 0.0) for m in left], otherwise)

    return accept, reject


def random_laws(rng, shape, zeros):
    """Distributions with holes, as after top-k; the likeliest token always stays."""
    x = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])
    holes = (rng.random(shape) < zeros) & (x < x.max(-1, keepdims=True))
    x = np.where(holes, 0.0, x)
    return x / x.sum(-1, keepdims=True)


def random_round(tree, *, rows=30, vocab=7, seed=0, zeros=0.3, absent=0.15):
    """`log_p`, a draft drawn without replacement, and the laws of both sides."""
    rng = np.random.default_rng(seed)
    p = random_laws(rng, (rows, tree.size, vocab), zeros)
    q = random_laws(rng, (rows, tree.size, vocab), 2 * zeros)
    tokens = np.zeros((rows, tree.size), np.int32)
    valid = rng.random((rows, tree.size)) >= absent
    valid[:, 0] = True
    for node in tree.internal:
        children = [n for n in range(1, tree.size) if tree.parents[n] == node]
        # Where q has fewer tokens than children, the last ones are impossible draws.
        order = np.log(q[:, node] + 1e-30) + rng.gumbel(size=(rows, vocab))
        tokens[:, children] = np.argsort(-order, axis=1)[:, : len(children)]
        # A sample behind one that is missing is none; see the traps.
        valid[:, children] = np.cumprod(valid[:, children], axis=1)
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log(q)
    draft = Draft(
        jnp.asarray(tokens),
        jnp.asarray(valid),
        log_q=jnp.asarray(log_q[:, tree.internal]),
        drawn="without_replacement",
    )
    return jnp.asarray(log_p), draft, p, q


def as_given(draft):
    """The same tokens without a distribution that they were drawn from."""
    return replace(draft, log_q=None, drawn="top")


def outcomes_of(law, tree, tokens, row):
    """A rule's law in the form of `walk`."""
    outcomes = defaultdict(float)
    for n in range(tree.size):
        path = tokens[row, tree.paths[n][1 : tree.depths[n] + 1]]
        for y, mass in enumerate(np.asarray(law.final[row, n])):
            outcomes[*map(int, path), y] += float(law.stop[row, n]) * mass
    return outcomes


def assert_same_outcomes(found, wanted, atol=1e-9):
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-9)
    for outcome in wanted.keys() | found.keys():
        assert abs(wanted[outcome] - found[outcome]) < atol, outcome


def assert_follows(law, tree, draft, p, q, accept, reject, atol=1e-9):
    """Holds each row of a law to the walk."""
    tokens, valid = np.asarray(draft.tokens), np.asarray(draft.valid)
    for row in range(len(tokens)):
        own = None if draft.log_q is None else q[row]
        wanted = walk(tree, tokens[row], valid[row], p[row], own, accept, reject)
        assert_same_outcomes(outcomes_of(law, tree, tokens, row), wanted, atol)


def codebook(vocab=7, seed=1):
    return np.random.default_rng(seed).normal(size=(vocab, 2))


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize(
    ("tree", "fallback"),
    [(CHAIN, "uniform"), (FORK, "uniform"), (FORK, "target"), (WIDE, "target")],
    ids=["chain", "fork", "fork-target", "wide"],
)
def test_law_is_that_of_the_published_walk(tree, budget, fallback):
    k, kin, laws = 3, kin_of(codebook()), {}
    params = {"neighbours": neighbour_table(codebook(), k)}
    with jax.enable_x64(True):
        log_p, draft, p, q = random_round(tree)
        for residual in (
            "published",
            "zero_target",
            "keep_target",
            "drop_target",
            "optimal",
        ):
            released = {"fallback": fallback, "filtered": "published"}
            rule = Lantern(k, residual=residual, **released, **budget)
            law = laws[residual] = rule.law(log_p, draft, tree, params=params)
            steps = published(kin, k=k, residual=residual, fallback=fallback, **budget)
            assert_follows(law, tree, draft, p, q, *steps)
            if residual in ("published", "zero_target", "optimal"):
                law = rule.law(log_p, as_given(draft), tree, params=params)
                assert_follows(law, tree, as_given(draft), p, q, *steps)
    # Control: on these rows no two of the four forms are the same rule.
    forms = [np.asarray(laws[x].final) for x in list(laws)[1:]]
    for i, one in enumerate(forms):
        assert not any(np.allclose(one, other) for other in forms[:i])
    np.testing.assert_array_equal(laws["published"].final, laws["keep_target"].final)


def line_law(p, token, rule):
    """Stop `[N]` and final `[N, V]` for one given child; the codes lie on a line."""
    tree = Tree.chain(1)
    line = np.cumsum(1.1 ** np.arange(len(p)))[:, None]  # gaps grow: no ties
    params = {"neighbours": neighbour_table(line, rule.k)}
    with jax.enable_x64(True):
        log_p = jnp.log(jnp.broadcast_to(jnp.asarray(p), (1, 2, len(p))))
        draft = Draft(jnp.array([[0, token]]), jnp.ones((1, 2), bool), drawn="top")
        law = rule.law(log_p, draft, tree, params=params)
        return np.asarray(law.stop)[0], np.asarray(law.final)[0]


def test_one_neighbour_more_is_zeroed_than_was_tested():
    p = [0.1, 0.05, 0.2, 0.3, 0.35]
    stop, final = line_law(p, 0, Lantern(k=1, delta=0.5))
    np.testing.assert_allclose(stop, [0.85, 0.15])  # p of 0 and of code 1, not 2
    np.testing.assert_allclose(final[0] * 0.65, [0, 0, 0, 0.3, 0.35], atol=1e-12)
    # Where nothing fits, nothing around is taken.
    _, final = line_law(p, 0, Lantern(k=1, delta=0.01))
    np.testing.assert_allclose(final[0] * 0.9, [0, *p[1:]], atol=1e-12)


def test_a_heavy_near_code_hides_the_light_ones_behind_it():
    stop, _ = line_law([0.1, 0.6, 0.01, 0.01, 0.28], 0, Lantern(k=3, delta=0.2))
    assert stop[1] == pytest.approx(0.1)


def test_a_filtered_code_passes_on_its_neighbours_alone_only_as_published():
    p, rule = [0.0, 0.1, 0.2, 0.3, 0.4], Lantern(k=2, delta=0.31)
    assert line_law(p, 0, rule)[0][1] == 0
    released = replace(rule, filtered="published")
    assert line_law(p, 0, released)[0][1] == pytest.approx(0.3)
    assert line_law(p, 0, replace(released, delta=None, lam=9.0))[0][1] == 0


def test_where_nothing_is_left_the_fallback_is_drawn_from():
    p = [0.3, 0.5, 0.2, 0.0, 0.0, 0.0]
    _, uniform = line_law(p, 0, Lantern(k=1, delta=0.5, fallback="uniform"))
    np.testing.assert_allclose(uniform[0], 1 / 6)  # of filtered codes, too
    _, target = line_law(p, 0, Lantern(k=1, delta=0.5))
    np.testing.assert_allclose(target[0], p, atol=1e-12)


@pytest.mark.parametrize(
    "budget", [{"delta": 0.2}, {"lam": 3.0}, {"lam": 1.0}], ids=str
)
def test_tokens_that_are_no_codes_have_no_neighbours(budget):
    """Structural tokens stand for themselves: plain rejection, whatever the budget."""
    k, first, vocab = 3, 2, 9
    table = neighbour_table(codebook(6), k).for_vocabulary(vocab, first)
    codes = [[y + first for y in kin] for kin in kin_of(codebook(6))]
    kin = [[]] * first + codes + [[]] * (vocab - first - len(codes))
    with jax.enable_x64(True):
        log_p, draft, p, q = random_round(WIDE, vocab=vocab, zeros=0.0)
        for residual in ("keep_target", "zero_target", "optimal"):
            rule = Lantern(k, residual=residual, fallback="uniform", **budget)
            law = rule.law(log_p, draft, WIDE, params={"neighbours": table})
            steps = published(kin, k=k, residual=residual, fallback="uniform", **budget)
            assert_follows(law, WIDE, draft, p, q, *steps)


def greedy_walk(tree, tokens, valid, logits, kin, *, k, **budget):
    """Card of temperature 0: the last node kept and the token after it."""
    ok = [True] + [False] * (tree.size - 1)
    for n in range(1, tree.size):
        row = logits[tree.parents[n]]
        p = np.exp(row - row.max())
        p, x = p / p.sum(), tokens[n]
        p[x] = relaxed_probability(p.copy(), x, kin, k=k, **budget)[0]
        ok[n] = bool(valid[n] and p.argmax() == x)
    leaves = [n for n in range(tree.size) if n not in tree.parents]
    rows = sorted(tree.paths[n][1 : tree.depths[n] + 1].tolist() for n in leaves)
    kept = max(([*takewhile(ok.__getitem__, row)] for row in rows), key=len)
    last = kept[-1] if kept else 0
    return last, int(logits[last].argmax())


@pytest.mark.parametrize("budget", [{"delta": 0.2}, {"lam": 2.0}], ids=str)
@pytest.mark.parametrize("tree", [CHAIN, FORK], ids=["chain", "fork"])
def test_greedy_rows_accept_what_its_credit_makes_the_argmax(tree, budget):
    rows, vocab, k = 30, 7, 3
    rng = np.random.default_rng(3)
    # Whole logits: the relaxed probability often ties with the best one.
    logits = rng.integers(-1, 2, size=(rows, tree.size, vocab)).astype(float)
    tokens = rng.integers(vocab, size=(rows, tree.size)).astype(np.int32)
    valid = rng.random((rows, tree.size)) < 0.9
    greedy = np.arange(rows) % 3 > 0
    draft = Draft(jnp.asarray(tokens), jnp.asarray(valid))
    kin = kin_of(codebook())
    params = {"neighbours": neighbour_table(codebook(), k)}
    rule = Lantern(k, **budget)
    with jax.enable_x64(True):
        log_p = jnp.asarray(logits)
        law = rule.law(log_p, draft, tree, jnp.asarray(greedy), params)
        drawn = rule.law(log_p, draft, tree, None, params)
    forgiven = 0
    for row in np.flatnonzero(greedy):
        last, token = greedy_walk(
            tree, tokens[row], valid[row], logits[row], kin, k=k, **budget
        )
        np.testing.assert_array_equal(law.stop[row], np.arange(tree.size) == last)
        np.testing.assert_array_equal(law.final[row, last], np.arange(vocab) == token)
        path = tree.paths[last][: tree.depths[last] + 1]
        best = logits[row, path[:-1]].argmax(-1)
        forgiven += (tokens[row, path[1:]] != best).sum()
    assert forgiven > 3
    np.testing.assert_array_equal(law.stop[~greedy], drawn.stop[~greedy])
    np.testing.assert_array_equal(law.final[~greedy], drawn.final[~greedy])


@pytest.mark.parametrize("tree", [CHAIN, FORK], ids=["chain", "fork"])
def test_without_credit_and_with_plain_subtraction_it_is_rejection(tree):
    params = {"neighbours": neighbour_table(codebook(), 3)}
    with jax.enable_x64(True):
        log_p, draft, _, _ = random_round(tree)
        for case in (draft, as_given(draft)):
            plain = Rejection().law(log_p, case, tree)
            rule = Lantern(3, lam=1.0, residual="optimal", fallback="target")
            law = rule.law(log_p, case, tree, params=params)
            np.testing.assert_allclose(law.stop, plain.stop, atol=1e-12)
            for n in range(tree.size):
                weight = np.asarray(plain.stop)[:, n, None]
                np.testing.assert_allclose(
                    weight * law.final[:, n], weight * plain.final[:, n], atol=1e-12
                )


def test_lossless_only_without_credit():
    vocab = 4
    p, q = Conditionals.random(vocab, 3, 0, zeros=0.2), Conditionals.random(vocab, 3, 1)
    drafts = all_drafts(q, FORK, "without_replacement")
    params = {"neighbours": neighbour_table(codebook(vocab), 2)}
    assert_lossless(Lantern(2, lam=1.0, residual="optimal"), p, drafts, params, draws=0)
    for rule in (
        Lantern(2, delta=0.5),
        Lantern(2, delta=0.5, residual="optimal"),
        Lantern(2, lam=3.0, residual="optimal"),
    ):
        with pytest.raises(AssertionError, match="Lantern.law is biased"):
            assert_lossless(rule, p, drafts, params, draws=0)


@pytest.mark.parametrize("budget", [{"delta": 0.15}, {"lam": 5.0}], ids=str)
def test_optimal_residual_leaves_no_more_distortion_than_the_test_itself_makes(budget):
    """What is accepted too often cannot be undone; all else can, and is."""
    k, vocab = 3, 8
    kin = kin_of(codebook(vocab))
    params = {"neighbours": neighbour_table(codebook(vocab), k)}
    p, q = Conditionals.random(vocab, 2, 0), Conditionals.random(vocab, 1, 20)
    drafts = all_drafts(q, Tree.chain(1), "without_replacement")
    first, drawn = p.tables[0], q.tables[0]
    credit = [
        relaxed_probability(first, x, kin, k=k, **budget)[0] for x in range(vocab)
    ]
    floor = np.maximum(np.minimum(drawn, credit) - first, 0).sum()
    found = {
        residual: distortion(Lantern(k, residual=residual, **budget), p, drafts, params)
        for residual in ("optimal", "zero_target", "keep_target", "drop_target")
    }
    assert found["optimal"] == pytest.approx(floor, abs=1e-6)
    assert min(found.values()) > floor - 1e-6
    assert floor > 0.05 and found["zero_target"] > floor + 0.01


def test_table_lists_the_nearest_others_as_a_search_does():
    rng = np.random.default_rng(0)
    lattice = rng.integers(-2, 3, size=(40, 2))  # equal codes and equal distances
    for codes in (rng.normal(size=(40, 3)), lattice):
        table = neighbour_table(codes, 6)
        assert table.most == 6 and table.ids.dtype == jnp.int32
        wanted = np.array([row[:7] for row in kin_of(codes)])
        np.testing.assert_array_equal(table.ids, wanted)
        apart = np.linalg.norm(codes[:, None] - codes[wanted], axis=-1)
        np.testing.assert_allclose(table.distances, apart, rtol=1e-5, atol=1e-6)
        for block in (1, 7, 40):
            again = neighbour_table(codes, 6, block=block)
            np.testing.assert_array_equal(again.ids, table.ids)


def test_directions_and_stored_vectors_have_other_neighbours():
    codes = codebook(30) * np.linspace(0.2, 3, 30)[:, None]
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    table = neighbour_table(codes, 5, normalise=True)
    np.testing.assert_array_equal(table.ids, [row[:6] for row in kin_of(unit)])
    assert (table.ids != neighbour_table(codes, 5).ids).any()
    # Of unit vectors the two are one.
    np.testing.assert_array_equal(neighbour_table(unit, 5).ids, table.ids)


def test_codes_may_start_later_in_a_vocabulary():
    table = neighbour_table(codebook(6), 2)
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
        (lambda: Lantern(k=0, delta=0.1), "k=0 must be at least 1"),
        (lambda: Lantern(k=3), "or lam; none was given"),
        (lambda: Lantern(k=3, delta=0.1, lam=2.0), "both was given"),
        (lambda: Lantern(k=3), "additive delta or lam; none was given"),
        (lambda: Lantern(k=3, lam=float("inf")), "a number of at least 1"),
        (lambda: Lantern(k=3, delta=-0.1), "-0.1 is not in"),
        (lambda: Lantern(k=3, delta=5.0), "5.0 is not in"),
        (lambda: Lantern(k=3, delta=float("nan")), "nan is not in"),
        (lambda: Lantern(k=3, lam=0.5), "lam=0.5 must be a number of at least 1"),
        (lambda: Lantern(3, 0.1, residual="none"), "residual='none'; use one of"),
        (lambda: Lantern(3, 0.1, fallback="zero"), "fallback='zero'; use one of"),
        (lambda: neighbour_table(codebook(6), 0), "1 to 4 usable"),
        (lambda: neighbour_table(codebook(6), 5), "1 to 4 usable"),
    ],
)
def test_impossible_settings_say_what_is_wrong(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_drafts_and_tables_that_do_not_suit_are_refused():
    log_p, draft, _, _ = random_round(CHAIN, rows=2)
    table = {"neighbours": neighbour_table(codebook(), 3)}
    plain, wider = Lantern(3, 0.1), Lantern(4, 0.1)
    subtract = Lantern(3, 0.1, residual="keep_target")
    drop = Lantern(3, 0.1, residual="drop_target")
    for rule, other, params, words in (
        (plain, {}, None, r"needs params=\{'neighbours'"),
        (plain, {}, {}, r"needs params=\{'neighbours'"),
        (wider, {}, table, "tests 4 neighbours, its table serves 3; build a wider"),
        (subtract, {"drawn": "top"}, table, "use 'zero_target' or 'optimal'"),
        (drop, {"drawn": "guess"}, table, "use 'zero_target' or 'optimal'"),
        (plain, {"drawn": "top_and_sample"}, table, "not top_and_sample"),
        (plain, {"log_q": None}, table, "needs the drafter's distribution"),
        (plain, {"pruned": "token"}, table, "drops a token for what it is"),
    ):
        with pytest.raises(ConfigError, match=words):
            rule.law(log_p, replace(draft, **other), CHAIN, params=params)
    gap = Tree.from_paths([(1,), (1, 1)])
    with pytest.raises(ConfigError, match="without a gap"):
        plain.law(log_p, draft, gap, params=table)
