"""Continuous batching: every job gets the tokens that it would get alone."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafters.jacobi import Jacobi
from jaxspec.drafters.recycling import TokenRecycling
from jaxspec.drafters.small_model import DraftModel
from jaxspec.sharding import make_mesh, over_rows
from jaxspec.spec.loop import generate
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine, StoppingCriteria
from jaxspec.spec.stream import Jobs, begin_stream, run_stream
from jaxspec.spec.tree import Tree
from jaxspec.testing.toy import toy_params, toy_target

VOCAB, LENGTH, COUNT = 6, 24, 23
PARAMS, OTHER = toy_params(VOCAB, 60), toy_params(VOCAB, 60, seed=1)
BUSHY = named_tree("0,1,2,00,01,10,000")
DRAFTERS = {
    "plain": (None, Tree.root(), None),
    "jacobi": (Jacobi(VOCAB), BUSHY, None),
    "recycling": (TokenRecycling(VOCAB, 4, False), BUSHY, None),
    "small": (DraftModel(toy_target(VOCAB)), BUSHY, OTHER),
}


@lru_cache
def jobs():
    """Prompts, settings and lengths that differ."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCAB, (COUNT, 4))
    prompt[np.arange(4) >= rng.integers(1, 5, COUNT)[:, None]] = -1
    return Jobs(
        jnp.arange(COUNT),
        jnp.asarray(prompt),
        make_sampling(
            COUNT,
            temperature=rng.choice([0.0, 0.7, 1.0], COUNT),
            cfg_scale=rng.choice([0.5, 1.0, 2.0], COUNT),
        ),
        batch_keys(3, COUNT),
        StoppingCriteria.create(COUNT, rng.integers(1, LENGTH + 1, COUNT), [5]),
    )


def engine_of(drafter, tree):
    order = ("temperature",)
    return Engine(toy_target(VOCAB, 2), LENGTH, drafter, tree, order=order)


@lru_cache
def one_by_one():
    """What plain decoding gives each job, all side by side."""
    run = jax.jit(partial(generate, engine_of(None, Tree.root())))
    work = jobs()
    return run(PARAMS, None, work.prompt, work.sampling, work.keys, work.stopping)


def some(work, numbers, size):
    """Jobs by number, filled up with none."""
    place = np.resize(np.asarray(numbers or [0]), size)
    real = np.arange(size) < len(numbers)
    picked = jax.tree.map(lambda x: x[place], work)
    return replace(picked, number=jnp.where(real, picked.number, -1))


def collect(found, finished):
    for i, number in enumerate(np.asarray(finished.number)):
        if number >= 0:
            assert number not in found
            found[int(number)] = jax.tree.map(
                lambda x: np.asarray(x)[i] if x.ndim else x,  # noqa: B023
                finished.result,
            )


def assert_all_as_alone(found):
    wanted = one_by_one()
    assert sorted(found) == list(range(COUNT))
    for number, result in found.items():
        np.testing.assert_array_equal(result.tokens, wanted.tokens[number])
        assert result.lengths == wanted.lengths[number] and result.finite


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("rows, size, wait", [(4, 7, 1), (5, 3, 3)])
def test_every_job_gets_the_tokens_it_gets_alone(name, rows, size, wait):
    drafter, tree, own = DRAFTERS[name]
    engine = engine_of(drafter, tree)
    begin = jax.jit(partial(begin_stream, engine))
    run = jax.jit(partial(run_stream, engine, wait=wait), donate_argnums=2)
    stream = begin(PARAMS, own, some(jobs(), list(range(rows)), rows))
    found, rounds = {}, 0
    for start in range(0, COUNT, size):
        queue = some(jobs(), list(range(start, min(start + size, COUNT))), size)
        stream, finished = run(PARAMS, own, stream, queue, start + size >= COUNT)
        collect(found, finished)
        rounds += int(finished.result.stats.rounds)
    assert_all_as_alone(found)
    assert (np.asarray(stream.jobs.number) == -1).all()
    calls = sum(int(r.stats.calls) - 1 for r in found.values())
    assert calls <= rounds * rows  # of all places, those that were used


def test_rows_that_refill_need_fewer_rounds_than_batches_that_wait():
    drafter, tree, own = DRAFTERS["jacobi"]
    engine, work = engine_of(drafter, tree), jobs()
    queue, rows = some(work, list(range(COUNT)), COUNT), 4
    stream = begin_stream(engine, PARAMS, own, some(work, list(range(rows)), rows))
    run = jax.jit(partial(run_stream, engine))
    _, finished = run(PARAMS, own, stream, queue, True)
    batches, lockstep = jax.jit(partial(generate, engine)), 0
    for start in range(0, COUNT, rows):
        part = some(work, list(range(start, min(start + rows, COUNT))), rows)
        given = part.prompt, part.sampling, part.keys, part.stopping
        lockstep += int(batches(PARAMS, own, *given).stats.rounds)
    assert finished.result.stats.rounds <= 0.8 * lockstep


def test_groups_of_devices_have_queues_of_their_own():
    """Of 4 groups one gets 8 jobs, another none."""
    drafter, tree, own = DRAFTERS["recycling"]
    engine, mesh, groups = engine_of(drafter, tree), make_mesh(4, 2), 4
    shares = [list(range(8)), [], list(range(8, 13)), list(range(13, COUNT))]
    size = max(map(len, shares))
    parts = [some(jobs(), share, size) for share in shares]
    queue = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    first = some(jobs(), list(range(2 * groups)), 2 * groups)
    begin = jax.jit(over_rows(mesh, partial(begin_stream, engine)))
    run = jax.jit(over_rows(mesh, partial(run_stream, engine)), donate_argnums=2)
    stream = begin(PARAMS, own, first)
    stream, finished = run(PARAMS, own, stream, queue, True)
    found = {}
    collect(found, finished)
    assert_all_as_alone(found)
