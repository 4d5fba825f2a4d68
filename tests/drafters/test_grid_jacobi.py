"""Speculative Jacobi decoding over a grid: first guesses, and what is kept."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.config.orders import cells_of
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.training_free.grid_jacobi import GridJacobi, GridJacobiState
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.errors import ConfigError
from jaxspec.pipeline.drafters import grid_jacobi
from jaxspec.speculative.draft import Draft, InitContext
from jaxspec.speculative.trees.tree import Tree
from tests.drafters.rounds import a_round, result_of
from tests.models.tiny import TINY

VOCAB, GRID, ROWS = 6, 4, 2
TREE = Tree.chain(3)
DRAFTER = GridJacobi(VOCAB, GRID, "halton")


def start(drafter=DRAFTER):
    ctx = InitContext(None, None, jnp.ones(ROWS, jnp.int32), TREE, ROWS, 16)
    return drafter.init(None, ctx)


def at(index):
    """Input of a draft whose next token has this index."""
    round_ = a_round([1, 2], TREE, VOCAB, ROWS)
    index = jnp.full(ROWS, index, jnp.int32)
    return replace(round_, index=index, sampling=Sampling.create(ROWS))


def random_log_p(*shape):
    return jax.nn.log_softmax(jax.random.normal(jax.random.key(3), (*shape, VOCAB)))


def test_a_first_guess_is_the_mean_of_the_nearest_known_cells():
    """By hand, over the grid; controls: another order, and a cell more."""
    log_p = random_log_p(ROWS, GRID**2)
    known = jnp.broadcast_to((jnp.arange(16) < 9) & (jnp.arange(16) != 4), (ROWS, 16))
    state = GridJacobiState(log_p, known, jnp.zeros(ROWS, jnp.int32))

    def guessed(drafter=DRAFTER):
        return drafter.propose(None, state, at(9))[0].log_q

    rows, columns = np.divmod(np.array(cells_of("halton", GRID)), GRID)
    for step in range(3):
        place = 9 + step
        away = np.hypot(rows - rows[place], columns - columns[place])
        near = [i for i in np.argsort(away, kind="stable") if i < 9 and i != 4][:4]
        weight = 1 / away[near]
        mean = np.einsum("n,bnv->bv", weight / weight.sum(), log_p[:, near])
        assert_allclose(guessed()[:, step], jax.nn.log_softmax(mean), atol=1e-5)
    for other in (
        GridJacobi(VOCAB, GRID, "raster"),
        GridJacobi(VOCAB, GRID, "halton", neighbors=5),
    ):
        assert np.abs(guessed(other) - guessed()).max() > 1e-2


def test_without_known_neighbors_a_guess_is_the_last_known_scores():
    """One cell is known, which is none of the nearest of the next."""
    drafter = GridJacobi(VOCAB, GRID, "raster", neighbors=1)
    log_p = random_log_p(ROWS, GRID**2)
    known = jnp.broadcast_to(jnp.arange(16) == 1, (ROWS, 16))
    state = GridJacobiState(log_p, known, jnp.zeros(ROWS, jnp.int32))
    found = drafter.propose(None, state, at(12))[0].log_q
    assert_allclose(found[:, 2], log_p[:, 1], atol=1e-5)
    nothing = GridJacobiState(log_p * 0, known & False, jnp.zeros(ROWS, jnp.int32))
    uniform = drafter.propose(None, nothing, at(12))[0].log_q
    assert_allclose(uniform, -np.log(VOCAB), atol=1e-5)


def test_scores_of_a_pass_are_kept_for_emitted_and_later_cells():
    """One of three drafts was accepted: four cells, two of them emitted."""
    logits = jax.random.normal(jax.random.key(0), (ROWS, 4, VOCAB))
    draft = Draft(jnp.zeros((ROWS, 4), jnp.int32), jnp.ones((ROWS, 4), bool))
    _, state = DRAFTER.propose(None, start(), at(6))
    result = result_of(logits, draft, TREE, [0, 1, 1, 1], 1)
    state = DRAFTER.observe(None, state, result)
    assert_array_equal(state.known[0], (np.arange(16) >= 6) & (np.arange(16) < 10))
    assert_allclose(state.log_p[:, 6:10], jax.nn.log_softmax(logits), atol=1e-6)
    # Drafts of the next round are those of `Jacobi` where a pass has scored them.
    plain = Jacobi(VOCAB)
    ctx = InitContext(None, None, jnp.ones(ROWS, jnp.int32), TREE, ROWS, 16)
    other = plain.observe(None, plain.init(None, ctx), result)
    expected = plain.propose(None, other, at(8))[0].log_q
    found = DRAFTER.propose(None, state, at(8))[0].log_q
    assert_allclose(found[:, :2], expected[:, :2], atol=1e-5)
    assert np.abs(found[:, 2] - expected[:, 2]).max() > 1e-2


def test_places_beyond_the_last_cell_are_dropped():
    logits = jax.random.normal(jax.random.key(0), (ROWS, 4, VOCAB))
    draft = Draft(jnp.zeros((ROWS, 4), jnp.int32), jnp.ones((ROWS, 4), bool))
    _, state = DRAFTER.propose(None, start(), at(15))
    state = DRAFTER.observe(None, state, result_of(logits, draft, TREE, [0] * 4, 0))
    assert_array_equal(state.known[0], np.arange(16) == 15)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="neighbors=0"):
        GridJacobi(VOCAB, GRID, neighbors=0)
    with pytest.raises(ConfigError, match="grid=0"):
        GridJacobi(VOCAB, 0)
    with pytest.raises(ConfigError, match="hilbert"):
        GridJacobi(VOCAB, GRID, "hilbert")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="take jacobi"):
        grid_jacobi(replace(TINY, rope="sequence", max_length=9))
