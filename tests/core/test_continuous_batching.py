"""Continuous batching: every request gets the tokens that it would get alone."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.drafters.draft_model.drafter import DraftModel
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.drafters.training_free.recycling import TokenRecycling
from jaxspec.sharding import make_mesh, over_batch
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.toy import toy_params, toy_target

VOCAB, LENGTH, COUNT = 6, 24, 23
PARAMS, OTHER = toy_params(VOCAB, 60), toy_params(VOCAB, 60, seed=1)
BUSHY = Tree.named("0,1,2,00,01,10,000")
DRAFTERS = {
    "plain": (None, Tree.root(), None),
    "jacobi": (Jacobi(VOCAB), BUSHY, None),
    "recycling": (TokenRecycling(VOCAB, 4, False), BUSHY, None),
    "small": (DraftModel(toy_target(VOCAB)), BUSHY, OTHER),
}


@lru_cache
def requests():
    """Prompts, settings and lengths that differ."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCAB, (COUNT, 4))
    prompt[np.arange(4) >= rng.integers(1, 5, COUNT)[:, None]] = -1
    return Requests(
        jnp.arange(COUNT),
        jnp.asarray(prompt),
        Sampling.create(
            COUNT,
            temperature=rng.choice([0.0, 0.7, 1.0], COUNT),
            cfg_scale=rng.choice([0.5, 1.0, 2.0], COUNT),
        ),
        batch_keys(3, COUNT),
        StoppingCriteria.create(
            COUNT, max_new_tokens=rng.integers(1, LENGTH + 1, COUNT), stop_tokens=[5]
        ),
    )


def engine_of(drafter, tree):
    order = ("temperature",)
    return Engine(toy_target(VOCAB, 2), LENGTH, drafter, tree, order=order)


@lru_cache
def one_by_one():
    """Results of plain decoding of all requests in one batch."""
    run = jax.jit(engine_of(None, Tree.root()).generate)
    return run(Variables(PARAMS), requests().prompt, **options(requests()))


def options(requests):
    return {
        "sampling": requests.sampling,
        "keys": requests.keys,
        "stopping": requests.stopping,
    }


def some(requests, ids, size):
    """Requests by number, padded with none."""
    index = np.resize(np.asarray(ids or [0]), size)
    real = np.arange(size) < len(ids)
    picked = jax.tree.map(lambda x: x[index], requests)
    return replace(picked, ids=jnp.where(real, picked.ids, -1))


def collect(found, finished):
    for i, number in enumerate(np.asarray(finished.ids)):
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


@pytest.mark.variants(1)
@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("rows, size, wait", [(4, 7, 1), (5, 3, 3)])
def test_every_request_gets_the_tokens_it_gets_alone(name, rows, size, wait):
    drafter, tree, own = DRAFTERS[name]
    engine = engine_of(drafter, tree)
    variables = Variables(PARAMS, own)
    begin = jax.jit(partial(idle_batch, engine))
    run = jax.jit(partial(run_queue, engine, wait=wait), donate_argnums=1)
    batch = begin(variables, some(requests(), list(range(rows)), rows))
    found, rounds = {}, 0
    for start in range(0, COUNT, size):
        queue = some(requests(), list(range(start, min(start + size, COUNT))), size)
        batch, finished = run(variables, batch, queue, start + size >= COUNT)
        collect(found, finished)
        rounds += int(finished.result.stats.rounds)
    assert_all_as_alone(found)
    assert (np.asarray(batch.ids) == -1).all()
    calls = sum(int(r.stats.calls) - 1 for r in found.values())
    assert calls <= rounds * rows  # of all places, those that were used


@pytest.mark.slow
def test_continuous_batching_needs_fewer_rounds_than_batches_in_lockstep():
    drafter, tree, own = DRAFTERS["jacobi"]
    engine, variables = engine_of(drafter, tree), Variables(PARAMS, own)
    queue, rows = some(requests(), list(range(COUNT)), COUNT), 4
    batch = idle_batch(engine, variables, some(requests(), list(range(rows)), rows))
    run = jax.jit(partial(run_queue, engine))
    _, finished = run(variables, batch, queue, True)
    generate, lockstep = jax.jit(engine.generate), 0
    for start in range(0, COUNT, rows):
        part = some(requests(), list(range(start, min(start + rows, COUNT))), rows)
        out = generate(variables, part.prompt, **options(part))
        lockstep += int(out.stats.rounds)
    assert finished.result.stats.rounds <= 0.8 * lockstep


@pytest.mark.slow
def test_groups_of_devices_have_queues_of_their_own():
    """Of 4 groups one gets 8 requests, another none."""
    drafter, tree, own = DRAFTERS["recycling"]
    engine, mesh, groups = engine_of(drafter, tree), make_mesh(4, 2), 4
    shares = [list(range(8)), [], list(range(8, 13)), list(range(13, COUNT))]
    size = max(map(len, shares))
    parts = [some(requests(), share, size) for share in shares]
    queue = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    first = some(requests(), list(range(2 * groups)), 2 * groups)
    begin = jax.jit(over_batch(mesh, partial(idle_batch, engine)))
    run = jax.jit(over_batch(mesh, partial(run_queue, engine)), donate_argnums=1)
    variables = Variables(PARAMS, own)
    _, finished = run(variables, begin(variables, first), queue, True)
    found = {}
    collect(found, finished)
    assert_all_as_alone(found)
