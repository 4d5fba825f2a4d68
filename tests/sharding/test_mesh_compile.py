"""Compiled programs on a mesh: communication, and memory of each device."""

import re
from functools import lru_cache
from math import prod

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxspec.checkpoint import abstract_params, named_leaves
from jaxspec.config import TransformerConfig
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.models.transformer.model import Transformer
from jaxspec.sharding import make_mesh, over_batch, placement
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.table_drafter import TableDrafter

LAYERS, WIDTH, VOCAB, ROWS = 3, 192, 4096, 8
CONFIG = TransformerConfig(
    vocab_size=VOCAB, layers=LAYERS, width=WIDTH, heads=8, grid=24, classes=1000
)
TREE = Tree.named("mc_sim_7b_63")
MESHES = [pytest.param((4, 2), marks=pytest.mark.slow), (2, 4), (1, 8)]


def sharded_shapes(tree, sharding):
    """Shapes of the arrays of a pytree, with their shardings."""
    leaves = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(path, x))
        for path, x in named_leaves(tree)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


@lru_cache
def compiled(data, model):
    """Compiled round on a mesh, and the shapes of its parameters and of its cache."""
    mesh = make_mesh(data, model)
    order = ("temperature", "top_k")
    target = Transformer(CONFIG).as_target(cfg=True)
    engine = Engine(target, 576, TableDrafter(), TREE, order=order)
    sharding = placement(mesh)
    params = sharded_shapes(
        abstract_params("prior", CONFIG), lambda p, x: sharding(p, x.shape)
    )
    last = NamedSharding(mesh, PartitionSpec(None, None, "model"))
    table = jax.ShapeDtypeStruct((2, VOCAB, VOCAB), jnp.float32, sharding=last)
    variables = Variables(params, {"table": table})
    state = jax.eval_shape(
        over_batch(mesh, engine.init),
        variables,
        jnp.zeros(ROWS, jnp.int32),
        sampling=Sampling.create(ROWS, cfg_scale=2.0, top_k=100),
        keys=batch_keys(0, ROWS),
        stopping=StoppingCriteria.create(ROWS, max_new_tokens=576),
    )

    def state_sharding(_, x):
        axes = ("data", "model")[: {4: 2, 0: 0}.get(x.ndim, 1)]  # [R, K, S, F]
        return NamedSharding(mesh, PartitionSpec(*axes))

    state = sharded_shapes(state, state_sharding)
    step = jax.jit(over_batch(mesh, engine.step), donate_argnums=1)
    return step.lower(variables, state).compile(), (params, table), state.cache.layers


COLLECTIVE = r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"


def collectives(compiled, everywhere=False):
    """Shapes and kinds of the collectives of the main computation, or of all."""
    text = compiled.as_text()
    text = text if everywhere else text[text.index("\nENTRY ") :]
    for line in text.splitlines():
        if match := re.search(rf"= (.+?) {COLLECTIVE}(-start)?\(", line):
            for dims in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                yield tuple(int(d) for d in dims.split(",") if d), match[2]


@pytest.mark.variants(1)
@pytest.mark.parametrize("mesh", MESHES)
def test_a_layer_needs_two_all_reduces_and_no_other_large_collective(mesh):
    main = list(collectives(compiled(*mesh)[0]))
    nodes = 2 * ROWS // mesh[0] * TREE.size
    sums = [kind for shape, kind in main if prod(shape) == nodes * WIDTH]
    assert sums == ["all-reduce"] * (2 * LAYERS + 1)  # one for the embedding
    others = [shape for shape, _ in main if prod(shape) != nodes * WIDTH]
    assert len(others) < 60
    # For logits, noise and caches: the maximum of each device, and one block.
    assert max(prod(shape) for shape in others) <= ROWS * TREE.size * 32
    assert not any(n >= VOCAB // 8 for shape in others for n in shape)
    # Loops and branches, which read the logits again, have large all-reduces only.
    everything = collectives(compiled(*mesh)[0], everywhere=True)
    gathered = [prod(shape) for shape, kind in everything if kind != "all-reduce"]
    assert max(gathered) <= ROWS * TREE.size * 32


@pytest.mark.variants(1)
@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_holds_its_part(mesh):
    program, params, cache = compiled(*mesh)
    data, model = mesh
    memory = program.memory_analysis()
    weights = sum(4 * x.size for x in jax.tree.leaves(params)) / model
    cache_bytes = sum(4 * x.size for x in jax.tree.leaves(cache)) / (data * model)
    assert memory.argument_size_in_bytes <= 1.1 * (weights + cache_bytes)
    assert memory.alias_size_in_bytes >= cache_bytes  # updated in place
    scores = 4 * (2 * ROWS / data) * TREE.size * VOCAB / model
    # Rescoring a near-tie runs both branches of a sequence, 128 queries at a time.
    attention = 4 * 2 * CONFIG.heads / model * 128 * 577
    assert memory.temp_size_in_bytes <= 8 * scores + attention + 1e6
    batch, heads, *rest = jax.tree.leaves(cache)[0].shape
    part = ",".join(map(str, (batch // data, heads // model, *rest)))
    text = program.as_text()
    assert f"f32[{part}]" in text
    assert not re.search(rf"= f32\[{part}\]\S* (copy|copy-start|transpose)\(", text)
