"""Static draft trees."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.dynamic import Beam
from jaxspec.speculative.trees.named_trees import NAMES
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled
from tests.speculative.trees.random_trees import trees


@given(trees())
def test_tables_agree_with_a_walk_along_the_parents(tree):
    for n in range(tree.size):
        walk = [n]
        while walk[-1]:
            walk.append(tree.parents[walk[-1]])
        walk.reverse()
        assert tree.depths[n] == len(walk) - 1
        assert set(np.flatnonzero(tree.ancestors[n])) == set(walk)
        padding = [n] * (tree.depth + 1 - len(walk))
        assert tree.paths[n].tolist() == walk + padding


# name: drafted nodes, nodes by depth, internal nodes with the root
PUBLISHED = {
    "naive_extend_57": (57, [5, 13, 16, 14, 9], 25),
    "mc_sim_7b_63": (25, [4, 8, 8, 3, 2], 11),
    "mc_sim_7b_63_balanced": (25, [3, 8, 9, 3, 2], 10),
    "reverse_balanced_25": (25, [3, 4, 6, 5, 7], 11),
    "medusa_2_7b_63": (63, [10, 23, 23, 7], 22),
    "chain": (5, [1, 1, 1, 1, 1], 5),
}


@pytest.mark.parametrize("name", NAMES)
def test_named_trees_have_their_published_shape(name):
    tree = Tree.named(name)
    nodes, by_depth, internal = PUBLISHED[name]
    assert tree.size == nodes + 1
    assert [len(level) for level in tree.levels[1:]] == by_depth
    assert len(tree.internal) == internal


def test_trees_are_values():
    assert Tree.named("chain-3") == Tree.chain(3) == Tree.from_paths([(0, 0, 0)])
    assert hash(Tree.chain(3)) == hash(Tree.from_paths([(0,), (0, 0), (0, 0, 0)]))


def test_optimal_tree_beats_every_tree_of_its_size():
    acceptance = [[0.6, 0.25, 0.1], [0.5, 0.2, 0.05]]

    def expected(tree):
        value = np.ones(tree.size)
        for n in range(1, tree.size):
            depth = min(tree.depths[n] - 1, 1)
            value[n] = value[tree.parents[n]] * acceptance[depth][tree.ranks[n]]
        return value[1:].sum()

    best = expected(Tree.optimal(acceptance, nodes=5, max_depth=3))

    def grow(paths):
        if len(paths) == 4:
            yield Tree.from_paths(paths)
            return
        for parent in [(), *paths]:
            for rank in range(3):
                child = (*parent, rank)
                if len(child) <= 3 and child not in paths:
                    yield from grow([*paths, child])

    assert best == pytest.approx(max(map(expected, grow([]))))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tree.named("oak"), "unknown tree 'oak'"),
        (lambda: Tree.named("chain-0"), "at least 1"),
        (lambda: Tree((0,), (0,)), "needs a root"),
        (lambda: Tree((-1, 2, 0), (0, 0, 0)), "parents must come before"),
        (lambda: Tree((-1, 0, 0), (0, 1, 1)), "same rank"),
        (lambda: Tree.from_paths([]), "at least one path"),
        (lambda: Tree.from_paths([(0, -1)]), "negative rank"),
    ],
)
def test_impossible_trees_raise_a_clear_error(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_children_beyond_the_width_are_left_out_of_the_outcome():
    draft = Draft(
        jnp.array([[0, 0, 1, 2]]),
        jnp.ones((1, 4), bool),
        parents=jnp.zeros((1, 4), jnp.int32),
    )
    p = jnp.log(jnp.tile(jnp.array([0.5, 0.3, 0.2]), (1, 4, 1)))
    stop = Coupled().outcome(p, draft, Beam(4, 2, branch=2)).stop
    np.testing.assert_allclose(stop, [[0.2, 0.5, 0.3, 0.0]], atol=1e-6)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(2, 12),
)
def test_optimal_trees_never_skip_a_rank(acceptance, nodes):
    """Acceptance by rank may rise by chance; samples need all earlier siblings."""
    if sum(acceptance[0]) == 0:
        with pytest.raises(ConfigError, match="no draft is ever accepted"):
            Tree.optimal(acceptance, nodes, 3)
    else:
        assert Tree.optimal(acceptance, nodes, 3).gapless
