"""Contract of generators, for every loop over `init` and `step`."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import register_dataclass

from jaxspec.config import NextScaleConfig, TransformerConfig
from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.generator import advance, generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.result import Generation, Stats
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.masked import (
    ContextCache,
    MaskedGenerator,
    MaskedVariables,
    MaskingSchedule,
)
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.transformer.model import Transformer
from jaxspec.next_scale import LocalAttention, NextScaleVariables, one_model
from jaxspec.sharding import make_mesh, over_batch
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target
from jaxspec.tokenizers.multi_scale.scales import Scales
from tests.next_scale.models import random_params

VOCAB, LENGTH, BATCH = 6, 9, 4


@register_dataclass
@dataclass(frozen=True)
class CountingState:
    """State of `Counting`."""

    first: jax.Array
    length: jax.Array
    stopping: StoppingCriteria
    done: jax.Array
    stats: Stats


@register_dataclass
@dataclass(frozen=True)
class CountingVariables:
    """Variables of `Counting`; all sequences share them."""

    shift: jax.Array

    is_replicated: ClassVar[bool] = True


@dataclass(frozen=True)
class Counting:
    """Generator that is no speculative engine: counts up from the prompt.

    Attributes:
      max_new_tokens: number of tokens of each sequence.
    """

    max_new_tokens: int

    def init(self, variables, prompt, *, sampling, keys, stopping=None) -> Any:
        """See `Generator`."""
        batch = prompt.shape[0]
        stopping = stopping or StoppingCriteria.create(
            max_new_tokens=self.max_new_tokens
        )
        zeros = jnp.zeros(batch, jnp.int32)
        return CountingState(
            prompt + variables.shift,
            zeros,
            stopping.for_batch(batch),
            zeros > 0,
            Stats.without_drafts(zeros),
        )

    def step(self, variables, state):
        """See `Generator`."""
        live = (~state.done).astype(jnp.int32)
        length = state.length + live
        stats = replace(
            state.stats, calls=state.stats.calls + live, rounds=state.stats.rounds + 1
        )
        done = state.done | (length >= state.stopping.max_new_tokens)
        return replace(state, length=length, done=done, stats=stats)

    def done(self, state):
        """See `Generator`."""
        return state.done

    def result(self, state) -> Generation:
        """See `Generator`."""
        index = jnp.arange(self.max_new_tokens)[None]
        tokens = jnp.where(
            index < state.length[:, None], state.first[:, None] + index, -1
        )
        return Generation(tokens, state.length, state.stats, jnp.ones_like(state.done))


TREE = Tree.named("0,1,00")
TABLE = {"table": jax.random.normal(jax.random.key(1), (TREE.depth, VOCAB, VOCAB))}
ENGINE = Engine(toy_target(VOCAB, 2), LENGTH, TableDrafter(), TREE)
SCALES = Scales((1, 2, 3), (0, 0, 0), 0.5)
NEXT_SCALE = NextScale(
    NextScaleConfig(
        VOCAB,
        code_dim=3,
        layers=1,
        width=8,
        heads=2,
        scales=SCALES.sides,
        classes=BATCH,
    )
)
REFINED = NextScale(replace(NEXT_SCALE.config, attends="own", mask_layers=1))


def scale_variables(model):
    make = jax.jit(lambda key: SCALES.init(key, VOCAB, 3))
    return NextScaleVariables((random_params(model),), make(jax.random.key(4)))


MASKED_CONFIG = TransformerConfig(
    VOCAB, layers=1, width=8, heads=2, grid=3, classes=BATCH, extra_tokens=1
)
MASKED = MaskedDiffusion(Transformer(MASKED_CONFIG))
MASKED_VARIABLES = MaskedVariables(random_params(MASKED.model))

# Two layers: keys of the second depend on other tokens.
DEEP_MASKED = MaskedDiffusion(Transformer(replace(MASKED_CONFIG, layers=2)))

GENERATORS = {
    "engine": (ENGINE, ENGINE.variables(toy_params(VOCAB, 60), TABLE)),
    "scales": (
        one_model(NEXT_SCALE, SCALES, limit=LENGTH),
        scale_variables(NEXT_SCALE),
    ),
    "refined scales": (
        one_model(REFINED, SCALES, limit=LENGTH),
        scale_variables(REFINED),
    ),
    "masked": (MaskedGenerator(MASKED, MaskingSchedule(LENGTH, 4)), MASKED_VARIABLES),
    "masked, cached": (
        MaskedGenerator(
            DEEP_MASKED, MaskingSchedule(LENGTH, 4), context=ContextCache(3, stages=2)
        ),
        MaskedVariables(random_params(DEEP_MASKED.model)),
    ),
    "local scales": (
        one_model(NEXT_SCALE, SCALES, limit=LENGTH, local=LocalAttention(1, block=1)),
        scale_variables(NEXT_SCALE),
    ),
    "counting": (Counting(LENGTH), CountingVariables(jnp.full(1, 3))),
}
SLOW = {"refined scales", "masked, cached", "local scales"}
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in GENERATORS
]


def options(batch=BATCH):
    budget = np.resize([LENGTH, 3, 7, 1], batch)
    return {
        "sampling": Sampling.create(batch, cfg_scale=2.0),
        "keys": batch_keys(5, batch),
        "stopping": StoppingCriteria.create(batch, max_new_tokens=budget),
    }


@lru_cache
def programs(name):
    """Compiled `init` and `step` of a generator."""
    generator, _ = GENERATORS[name]
    return jax.jit(generator.init), jax.jit(generator.step)


def started(name, batch=BATCH):
    init, _ = programs(name)
    return init(GENERATORS[name][1], jnp.arange(batch) % VOCAB, **options(batch))


@lru_cache
def to_the_end(name, batch=BATCH):
    (generator, variables), (_, step) = GENERATORS[name], programs(name)
    state = started(name, batch)
    while not generator.done(state).all():
        state = step(variables, state)
    return generator.result(state)


@pytest.mark.variants(2)
@pytest.mark.parametrize("name", NAMES)
def test_steps_in_any_portions_give_the_same_result(name):
    generator, variables = GENERATORS[name]
    state = started(name)
    few = jax.jit(partial(advance, generator, steps=2))
    lengths = []
    while not generator.done(state).all():
        state = few(variables, state)
        lengths.append(np.asarray(generator.result(state).lengths))
    expected = to_the_end(name)
    np.testing.assert_array_equal(generator.result(state).tokens, expected.tokens)
    assert len(lengths) > 1 and (np.diff(lengths, axis=0) >= 0).all()


@pytest.mark.variants(2)
@pytest.mark.parametrize("name", NAMES)
def test_one_program_gives_the_same_result(name):
    generator, variables = GENERATORS[name]
    run = jax.jit(partial(generate, generator))
    out = run(variables, jnp.arange(BATCH), **options())
    np.testing.assert_array_equal(out.tokens, to_the_end(name).tokens)


def test_a_single_key_on_a_mesh_is_refused():
    """All groups of devices would get the same noise."""
    generator, variables = GENERATORS["engine"]
    run = over_batch(make_mesh(4, 2), generator.generate)
    single = options() | {"keys": jax.random.key(0)}
    with pytest.raises(ConfigError, match="one for each sequence"):
        run(variables, jnp.arange(BATCH), **single)


@pytest.mark.variants(2)
@pytest.mark.parametrize("name", NAMES)
def test_an_intermediate_result_is_a_prefix_of_the_final_one(name):
    generator, variables = GENERATORS[name]
    state = started(name)
    early = generator.result(programs(name)[1](variables, state))
    last = to_the_end(name)
    exists = np.asarray(early.tokens) >= 0
    assert 0 < exists.sum() < (np.asarray(last.tokens) >= 0).sum()
    np.testing.assert_array_equal(early.tokens[exists], last.tokens[exists])


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_sequence_does_not_change(name):
    generator, variables = GENERATORS[name]
    state = started(name)
    while not generator.done(state).all():
        state = programs(name)[1](variables, state)
    again = generator.result(programs(name)[1](variables, state))
    expected = generator.result(state)
    np.testing.assert_array_equal(again.tokens, expected.tokens)
    np.testing.assert_array_equal(again.stats.calls, expected.stats.calls)


@pytest.mark.parametrize("name", NAMES)
def test_every_generator_is_batched_continuously(name):
    generator, variables = GENERATORS[name]
    count = 11
    queue = Requests(jnp.arange(count), jnp.arange(count) % VOCAB, **options(count))
    first = jax.tree.map(lambda x: x[:3], queue)
    batch = idle_batch(generator, variables, first)
    _, finished = jax.jit(partial(run_queue, generator))(variables, batch, queue, True)
    alone = to_the_end(name, count)
    order = np.argsort(np.asarray(finished.ids)[:count])
    np.testing.assert_array_equal(
        np.asarray(finished.result.tokens)[order], alone.tokens
    )


@pytest.mark.variants(4)
@pytest.mark.parametrize("name", NAMES)
def test_every_generator_is_divided_over_a_mesh(name):
    generator, variables = GENERATORS[name]
    mesh = make_mesh(4, 2)
    init = jax.jit(over_batch(mesh, generator.init))
    state = init(variables, jnp.arange(BATCH), **options())
    step = jax.jit(over_batch(mesh, generator.step))
    while not generator.done(state).all():
        state = step(variables, state)
    np.testing.assert_array_equal(
        generator.result(state).tokens, to_the_end(name).tokens
    )
