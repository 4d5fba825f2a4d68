"""Dynamic draft trees: their shape, their distribution, and unchanged tokens."""

import heapq
from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.tree_drafting import at_depth, expansions, grow, grow_by_depth
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import DraftContext, MixedLogits, Selection
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, BestFirst, StochasticBeam
from jaxspec.speculative.trees.topology import grown_topology, static_topology
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Rejection
from jaxspec.testing.table_drafter import TableDrafter, table_step
from jaxspec.testing.toy import toy_params, toy_target
from tests.speculative.trees.random_trees import trees

VOCAB, LENGTH = 6, 14
PARAMS = toy_params(VOCAB, 60)
DYNAMIC_TREES = [
    Beam(9, 3, beam=4, branch=3),
    Beam(20, 4, beam=19, branch=6),
    BestFirst(9, 4, branch=3),
    StochasticBeam(3, 3),
]


def make_round(batch, tree, selection, seed=0, **options):
    position = jnp.arange(batch)
    after = position[:, None] + 1 + jnp.arange(tree.depth + 1)
    keys = batch_keys(seed, batch)
    return DraftContext(
        root=jnp.arange(batch) % VOCAB,
        tokens=jnp.zeros((batch, 1), jnp.int32),
        position=position,
        index=position,
        noise=position_noise(keys, after, VOCAB),
        keys=keys,
        sampling=Sampling.create(batch, **options),
        tree=tree,
        selection=selection,
        order=("temperature",),
    )


@pytest.mark.slow
@settings(max_examples=8)
@given(trees(), st.integers(0, 2**31 - 1))
def test_dynamic_tables_equal_those_of_the_same_static_tree(tree, seed):
    """The same shape, given as data, yields the same tables as a static tree."""
    parents = jnp.asarray(tree.parents)[None]
    rng = np.random.default_rng(seed)
    valid = jnp.ones((1, tree.size), bool)
    grown, _ = grown_topology(parents, valid, tree.depth, tree.width)
    static = static_topology(tree)
    np.testing.assert_array_equal(grown.depths, static.depths)
    np.testing.assert_array_equal(grown.ancestors, static.ancestors)
    np.testing.assert_array_equal(grown.ranks, static.ranks)
    nodes = jnp.asarray(rng.integers(tree.size, size=1))
    np.testing.assert_array_equal(grown.path(nodes), static.path(nodes))
    np.testing.assert_array_equal(grown.path(nodes)[0], tree.paths[int(nodes[0])])
    internal = np.asarray(grown.children[0])[tree.internal]
    np.testing.assert_array_equal(internal, static.children[0])


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["top", "coupled"])
def test_a_wide_beam_finds_the_best_first_tree(selection):
    """For a factorized drafter the layered beam is DDTree's best-first search."""
    batch, nodes, depth = 5, 12, 4
    tree = Beam(nodes, depth, beam=nodes - 1, branch=VOCAB, sharpness=1.5)
    ctx = make_round(batch, tree, selection)
    table = 2 * jax.random.normal(jax.random.key(1), (depth, 1, VOCAB))
    table = jnp.broadcast_to(table, (depth, VOCAB, VOCAB))
    draft = grow(ctx, table_step(table))[0]
    for b in range(batch):
        value = np.asarray(jax.nn.log_softmax(table[:, 0]))
        if selection == "coupled":
            noisy = value + np.asarray(ctx.noise[b, :depth])
            value = np.asarray(jax.nn.log_softmax(1.5 * noisy))
        order, best = np.argsort(-value, axis=1), -np.sort(-value, axis=1)
        heap, kept = [(-best[0, 0], (0,))], set()
        while len(kept) < nodes - 1:
            total, ranks = heapq.heappop(heap)
            kept.add(tuple(order[d, r] for d, r in enumerate(ranks)))
            d, r = len(ranks) - 1, ranks[-1]
            if r + 1 < VOCAB:
                sibling = total + best[d, r] - best[d, r + 1]
                heapq.heappush(heap, (sibling, (*ranks[:-1], r + 1)))
            if d + 1 < depth:
                heapq.heappush(heap, (total - best[d + 1, 0], (*ranks, 0)))
        shape = draft.topology(tree)
        paths = set()
        for n in range(1, nodes):
            path = np.asarray(shape.path(jnp.full(batch, n)))[b]
            path = path[1 : int(shape.depths[b, n]) + 1]
            paths.add(tuple(np.asarray(draft.tokens)[b, path].tolist()))
        assert paths == kept


@settings(max_examples=12, deadline=None)
@given(
    trees().filter(lambda tree: tree.width <= VOCAB),
    st.sampled_from(get_args(Selection)),
    st.booleans(),
)
def test_levels_filled_at_once_are_those_filled_one_by_one(tree, selection, mixed):
    """Of logits that depend on the depth alone, filtered in some sequences."""
    batch = 4
    settings = {"top_k": [0, 2, 0, 3], "temperature": [1.0, 0.7, 0.0, 1.3]}
    ctx = make_round(batch, tree, selection, **settings)
    keys = jax.random.split(jax.random.key(3), 3)
    shape = batch, tree.depth + 2, VOCAB
    logits = 2 * jax.random.normal(keys[0], shape)
    if mixed:
        known = jax.random.bernoulli(keys[1], shape=shape[:2])
        other = MixedLogits(jax.random.normal(keys[2], shape), known, 0.3)
        ctx = replace(ctx, mixed=other)
    order = ("temperature", "top_k")

    def step(depth, tokens, node_state, carry):
        level = at_depth(logits, depth)
        return jnp.broadcast_to(level, (*tokens.shape, VOCAB)), node_state, carry

    ctx = replace(ctx, order=order)
    jax.tree.map(
        np.testing.assert_array_equal, grow_by_depth(ctx, logits), grow(ctx, step)[0]
    )


@pytest.mark.variants(2)
@pytest.mark.parametrize("tree", DYNAMIC_TREES, ids=lambda t: type(t).__name__)
def test_dynamic_drafts_are_trees(tree):
    """Parents come first, nothing is too deep, no two siblings hold the same token."""
    batch = 16
    selection = "without_replacement" if isinstance(tree, StochasticBeam) else "coupled"
    ctx = make_round(batch, tree, selection, top_k=np.resize([0, 2, 1], batch))
    table = 2 * jax.random.normal(jax.random.key(1), (tree.depth + 1, VOCAB, VOCAB))
    draft = jax.tree.map(np.asarray, grow(ctx, table_step(table))[0])
    depths = np.asarray(draft.topology(tree).depths)
    for b in range(batch):
        seen = set()
        for n in range(1, tree.size):
            parent = int(draft.parents[b, n])
            if draft.valid[b, n]:
                assert parent < n and draft.valid[b, parent]
                assert 1 <= depths[b, n] <= tree.depth
                assert (parent, draft.tokens[b, n]) not in seen
                seen.add((parent, draft.tokens[b, n]))
        assert seen


@pytest.mark.variants(1)
@pytest.mark.parametrize("tree", DYNAMIC_TREES, ids=str)
@pytest.mark.parametrize("branches", [1, 2])
def test_any_dynamic_tree_gives_the_tokens_of_plain_decoding(tree, branches):
    target, batch = toy_target(VOCAB, branches), 4
    prompt, keys = jnp.arange(batch), batch_keys(1, batch)
    scale = 1.5 if branches == 2 else 1.0
    temperature = [1.0, 0.0, 0.7, 1.0]
    sampling = Sampling.create(batch, temperature=temperature, cfg_scale=scale)
    order = ("temperature",)
    selection = "without_replacement" if isinstance(tree, StochasticBeam) else "coupled"
    plain = Engine(target, LENGTH, order=order).generate(
        Variables(PARAMS), prompt, sampling=sampling, keys=keys
    )
    engine = Engine(
        target, LENGTH, TableDrafter(), tree, order=order, selection=selection
    )
    traces = []

    @jax.jit
    def run(variables):
        traces.append(1)
        return engine.generate(variables, prompt, sampling=sampling, keys=keys)

    for seed in range(3):  # contents change, the program does not
        table = jax.random.normal(jax.random.key(seed), (tree.depth + 1, VOCAB, VOCAB))
        fast = run(Variables(PARAMS, {"table": table}))
        np.testing.assert_array_equal(fast.tokens, plain.tokens)
        assert fast.stats.hits.sum() > 0
    assert len(traces) == 1


def test_a_stochastic_beam_samples_paths_without_replacement():
    """Of two paths only the first follows the drafter's distribution."""
    batch, tree = 20000, StochasticBeam(2, 2)
    table = 1.5 * jax.random.normal(jax.random.key(0), (2, VOCAB, VOCAB))
    ctx = make_round(batch, tree, "without_replacement")
    ctx = DraftContext(**{**vars(ctx), "root": jnp.zeros(batch, jnp.int32)})
    draft = jax.jit(lambda ctx: grow(ctx, table_step(table))[0])(ctx)
    # Nodes 3 and 4 are the two paths of depth 2, the best first.
    first = np.asarray(draft.tokens)[np.arange(batch), np.asarray(draft.parents)[:, 3]]
    pairs = np.stack([first, np.asarray(draft.tokens)[:, 3]], axis=1)
    q = np.asarray(jax.nn.softmax(table, axis=-1), np.float64)
    expected = batch * q[0, 0][:, None] * q[1]

    def statistic(pairs):
        counts = np.zeros_like(expected)
        np.add.at(counts, tuple(pairs.T), 1)
        return ((counts - expected) ** 2 / expected).sum()

    bound = expected.size - 1 + 5 * np.sqrt(2 * expected.size)
    assert statistic(pairs) < bound
    second = np.asarray(draft.tokens)[np.arange(batch), np.asarray(draft.parents)[:, 4]]
    others = np.stack([second, np.asarray(draft.tokens)[:, 4]], axis=1)
    assert statistic(others) > bound


@pytest.mark.parametrize(
    ("tree", "selection", "words"),
    [
        (Beam(5, 2), "without_replacement", "keeps the likeliest nodes"),
        (StochasticBeam(2, 2), "coupled", "samples without replacement"),
        (BestFirst(5, 2), "with_replacement", "does not support selection"),
        (Tree.named("0,1,2,3,4,5,6"), "top", "only 6 tokens"),
    ],
)
def test_unsupported_selections_of_dynamic_trees_raise_a_clear_error(
    tree, selection, words
):
    table = jnp.zeros((3, VOCAB, VOCAB))
    with pytest.raises(ConfigError, match=words):
        grow(make_round(2, tree, selection), table_step(table))


def test_impossible_dynamic_trees_raise():
    for make in (
        lambda: Beam(1, 3),
        lambda: Beam(4, 0),
        lambda: Beam(4, 2, sharpness=0.0),
        lambda: StochasticBeam(0, 2),
        lambda: BestFirst(4, 2, branch=0),
    ):
        with pytest.raises(ConfigError):
            make()
    assert Coupled().selection == "coupled"
    assert Rejection().selection == "without_replacement"


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("tree", "selection"),
    [
        (Tree.named("0,1,2,00,01,10,000,001,010,100"), "coupled"),
        (Tree.named("1,0,00,10,11,110"), "without_replacement"),
        (Beam(14, 3, beam=4, branch=3), "coupled"),
        (BestFirst(14, 3, branch=3), "without_replacement"),
        (StochasticBeam(3, 4), "without_replacement"),
    ],
)
def test_each_node_gets_the_state_of_its_own_parent(tree, selection):
    """Logits that depend on the whole path are those of the path to each node."""
    batch = 6
    ctx = make_round(batch, tree, selection)
    weight = 2 * jax.random.normal(jax.random.key(4), (5, VOCAB))

    def read(depth, tokens, memory):
        depth = depth[:, None, None] if jnp.ndim(depth) else depth
        return jnp.sin(3 * memory + tokens[..., None] + depth) + memory[..., ::-1]

    def step(depth, tokens, memory, steps):
        memory = read(depth, tokens, memory)
        return memory @ weight, memory, steps + tokens.shape[1]

    start = jax.random.normal(jax.random.key(5), (batch, 1, 5))
    draft, steps = jax.jit(lambda ctx: grow(ctx, step, start, 0))(ctx)
    assert steps <= expansions(tree)[0]
    shape = draft.topology(tree)
    depths = np.broadcast_to(shape.depths, draft.tokens.shape)
    for b, n in zip(*np.nonzero(draft.valid), strict=True):
        path = np.asarray(shape.path(jnp.full(batch, n)))
        memory, log_q = start[b, 0], None
        for depth, node in enumerate(path[min(b, len(path) - 1), : depths[b, n] + 1]):
            token = draft.tokens[b, node]
            if depth and selection == "coupled":
                value = log_q + ctx.noise[b, depth - 1]
                assert value[token] >= jnp.sort(value)[-tree.width] - 1e-4
            memory = read(depth, token[None], memory)[0]
            log_q = jax.nn.log_softmax(memory @ weight)
        inner = shape.internal is None or n in shape.internal
        if draft.log_q is not None and inner and depths[b, n] < tree.depth:
            slot = shape.slots[min(b, len(shape.slots) - 1), n]
            np.testing.assert_allclose(draft.log_q[b, slot], log_q, atol=1e-4)
