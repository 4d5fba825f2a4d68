"""Contracts of the compiled program: one compilation, no cache copies in the loop."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.loop import generate, init_state, spec_step
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import row_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine
from jaxspec.spec.tree import Tree
from jaxspec.testing.toy import NoisyOracle
from tests.drafters.test_block_diffusion import TARGET, make

LAYERS, ROWS = TARGET.layers, 2


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


@pytest.mark.parametrize("tree", ["chain-3", "0,1,00,01,10,000"])
def test_no_cache_is_copied_inside_the_loop(tree):
    drafter, own, target_params = make()
    tree = named_tree(tree)
    target = make_target(Transformer(TARGET), guided=True, taps=drafter.config.taps)
    engine = Engine(target, 16, drafter, tree)
    compiled = (
        jax.jit(partial(generate, engine))
        .lower(
            target_params,
            drafter.bind(own, target_params),
            jnp.zeros(ROWS, jnp.int32),
            make_sampling(ROWS, guidance=2.0),
            row_keys(0, ROWS),
        )
        .compile()
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


def test_the_copy_counter_sees_a_copy():
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
    hlo = jax.jit(loop).lower(*arguments).compile().as_text()
    assert cache_copies(hlo, shape) != []


@pytest.mark.parametrize("guided", [True, False])
def test_one_compilation_serves_all_rounds_and_all_contents(guided):
    drafter, own, target_params = make()
    taps = drafter.config.taps
    target = make_target(Transformer(TARGET), guided=guided, taps=taps)
    engine = Engine(target, 16, drafter, named_tree("chain-3"), order=("temperature",))
    params = drafter.bind(own, target_params)
    traces = []

    def step(target_params, params, prompt, sampling, state):
        traces.append(1)
        return spec_step(engine, target_params, params, prompt, sampling, state)

    jitted = jax.jit(step, donate_argnums=4)
    for seed in range(2):
        prompt = jnp.array([seed, 1])
        sampling = make_sampling(ROWS, guidance=1.5 + seed)
        keys = row_keys(seed, ROWS)
        state = init_state(engine, target_params, params, prompt, sampling, keys)
        while bool((state.length < 16).any()):
            state = jitted(target_params, params, prompt, sampling, state)
        whole = generate(engine, target_params, params, prompt, sampling, keys)
        assert (state.tokens[:, :16] == whole.tokens).all()
    assert len(traces) == jitted._cache_size() == 1


def test_engines_are_static_arguments():
    target = make_target(Transformer(TARGET), guided=True)
    assert target is make_target(Transformer(TARGET), guided=True)
    engines = {
        Engine(target, 4, NoisyOracle(3), Tree.chain(2)),
        Engine(target, 4, NoisyOracle(3), named_tree("chain-2")),
    }
    assert len(engines) == 1
