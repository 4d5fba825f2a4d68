"""Contracts of the compiled program: one compilation, no cache copies in the loop."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxspec.checkpoint import abstract_params
from jaxspec.config import TransformerConfig
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import BestFirst
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import NoisyOracle
from tests.drafters.tiny_block import TARGET, block_drafter

LAYERS, ROWS = TARGET.layers, 2
# The suite compiles with few optimizations; these programs have the defaults.
AS_USERS = {}
if jax.__version__.startswith("0.10."):
    AS_USERS = {
        "xla_cpu_use_fusion_emitters": True,
        "xla_cpu_enable_concurrency_optimized_scheduler": True,
        "xla_backend_optimization_level": 3,
    }


def computations(hlo):
    """Text of each computation of a compiled module, and which one is the entry."""
    blocks, name, entry = {}, None, None
    for line in hlo.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = match[2]
            entry = name if match[1] else entry
            blocks[name] = []
        if name is not None:
            blocks[name].append(line)
    return blocks, entry


def cache_copies(hlo, shape):
    """Copies of arrays of `shape` outside the entry, which only fills them with 0."""
    blocks, entry = computations(hlo)
    dims = ",".join(map(str, shape))
    pattern = re.compile(rf"= f32\[{dims}\]\S* (copy|copy-start|transpose)\(")
    return [
        line.strip()
        for name, lines in blocks.items()
        if name != entry
        for line in lines
        if pattern.search(line)
    ]


@pytest.mark.parametrize(
    "tree",
    [
        Tree.named("0,1,00,01,10,000"),
        pytest.param(BestFirst(7, 3), marks=pytest.mark.slow),
    ],
)
def test_no_cache_is_copied_inside_the_loop(tree):
    drafter, own, target_params = block_drafter()
    target = Transformer(TARGET).as_target(
        cfg=True, feature_layers=drafter.config.feature_layers
    )
    engine = Engine(target, 16, drafter, tree)
    compiled = (
        jax.jit(engine.generate)
        .lower(
            engine.variables(target_params, own),
            jnp.zeros(ROWS, jnp.int32),
            sampling=Sampling.create(cfg_scale=2.0),
            keys=batch_keys(0, ROWS),
        )
        .compile(AS_USERS)
    )
    capacity = 1 + 16 + tree.size
    shape = (2 * ROWS, TARGET.heads, capacity, TARGET.head_size)
    hlo = compiled.as_text()
    assert f"f32[{','.join(map(str, shape))}]" in hlo
    assert cache_copies(hlo, shape) == []
    beyond = capacity + max(drafter.config.block_size, tree.depth + 1)
    shape = (*shape[:2], beyond, drafter.config.head_size)
    assert f"f32[{','.join(map(str, shape))}]" in hlo
    assert cache_copies(hlo, shape) == []


def test_the_copy_counter_detects_a_copy():
    """The control: compaction after the reads copies, and is counted."""
    shape = (2, 2, 640, 8)

    def step(cache, x, path):
        cache = jax.lax.dynamic_update_slice(cache, x, (0, 0, 600, 0))
        read = jnp.einsum("rksf,rksf->rk", cache, cache)
        window = cache[:, :, 600:616][:, :, path]
        return jax.lax.dynamic_update_slice(cache, window, (0, 0, 600, 0)), read

    def loop(cache, x, path):
        def body(_, carry):
            cache, total = carry
            cache, read = step(cache, x + total.sum(), path)
            return cache, total + read

        return jax.lax.fori_loop(0, 5, body, (cache, jnp.zeros((2, 2))))

    arguments = (jnp.zeros(shape), jnp.ones((2, 2, 16, 8)), jnp.arange(16)[::-1])
    hlo = jax.jit(loop).lower(*arguments).compile(AS_USERS).as_text()
    assert cache_copies(hlo, shape) != []


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("guided", "tree"), [(True, BestFirst(6, 3)), (False, Tree.chain(3))]
)
def test_one_compilation_serves_all_rounds_and_all_contents(guided, tree):
    drafter, own, target_params = block_drafter()
    feature_layers = drafter.config.feature_layers
    target = Transformer(TARGET).as_target(cfg=guided, feature_layers=feature_layers)
    engine = Engine(target, 16, drafter, tree, order=("temperature",))
    variables = engine.variables(target_params, own)
    traces = []

    def step(variables, state):
        traces.append(1)
        return engine.step(variables, state)

    jitted = jax.jit(step, donate_argnums=1)
    start = jax.jit(engine.init)
    alone = Engine(target, 16, order=("temperature",))
    plain = jax.jit(alone.generate)
    for seed in range(2):
        prompt = jnp.array([seed, 1])
        sampling = Sampling.create(ROWS, cfg_scale=1.5 + seed)
        keys = batch_keys(seed, ROWS)
        stopping = StoppingCriteria.create(
            ROWS, max_new_tokens=[16, 7 + seed], stop_tokens=[seed]
        )
        state = start(
            variables, prompt, sampling=sampling, keys=keys, stopping=stopping
        )
        while not bool(state.done.all()):
            state = jitted(variables, state)
        alone = plain(
            Variables(target_params),
            prompt,
            sampling=sampling,
            keys=keys,
            stopping=stopping,
        )
        assert (state.length == alone.lengths).all()
        kept = jnp.arange(16) < alone.lengths[:, None]
        assert (jnp.where(kept, state.tokens[:, :16], -1) == alone.tokens).all()
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "tree",
    [
        Tree.named("mc_sim_7b_63"),
        pytest.param(BestFirst(26, 5), marks=pytest.mark.slow),
    ],
)
def test_a_round_needs_little_memory_beside_its_cache(tree):
    vocab = 16384  # LlamaGen-B
    config = TransformerConfig(
        vocab_size=vocab, layers=12, width=768, heads=12, grid=24, classes=1000
    )
    engine = Engine(Transformer(config).as_target(), 576, TableDrafter(), tree)
    params = abstract_params("prior", config)
    table = {"table": jax.ShapeDtypeStruct((2, vocab, vocab), jnp.float32)}
    variables, rows = Variables(params, table), 8
    state = jax.eval_shape(
        engine.init,
        variables,
        jnp.zeros(rows, jnp.int32),
        sampling=Sampling.create(cfg_scale=2.0),
        keys=batch_keys(0, rows),
    )
    step = jax.jit(engine.step, donate_argnums=1)
    memory = step.lower(variables, state).compile(AS_USERS).memory_analysis()
    cache = sum(4 * x.size for x in jax.tree.leaves(state.cache.layers))
    assert memory.temp_size_in_bytes < 0.2 * cache
    assert memory.alias_size_in_bytes >= cache  # updated in place


def test_engines_are_static_arguments():
    target = Transformer(TARGET).as_target(cfg=True)
    assert target == Transformer(TARGET).as_target(cfg=True)
    engines = {
        Engine(target, 4, NoisyOracle(TARGET.vocab_size), Tree.chain(2)),
        Engine(target, 4, NoisyOracle(TARGET.vocab_size), Tree.named("chain-2")),
    }
    assert len(engines) == 1
