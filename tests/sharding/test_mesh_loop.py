"""Generation on any mesh yields the tokens of one device.

All verifiers and more drafters: `pytest -m slow tests/sharding`.
"""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import named_leaves
from jaxspec.config import TransformerConfig
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.draft_model.drafter import DraftModel
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.drafters.training_free.grid_jacobi import GridJacobi
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.drafters.training_free.ngram import NgramTable
from jaxspec.drafters.training_free.recycling import TokenRecycling
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.nn.quantize import quantized
from jaxspec.sharding import make_mesh, over_batch, pad_batch, placement
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import (
    Annealed,
    Block,
    Coupled,
    CoupledRelaxed,
    GreedySet,
    Grouped,
    Judge,
    KSeq,
    Lantern,
    Rejection,
    Typical,
)
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.testing.table_drafter import TableDrafter
from tests.models.tiny import random_params

V = 1032  # more than one block of tokens; 8 devices divide it, 128 blocks do not
TARGET = TransformerConfig(vocab_size=V, layers=2, width=32, heads=8, grid=4, classes=3)
SMALL = TransformerConfig(vocab_size=V, layers=1, width=16, heads=2, grid=4, classes=3)
BLOCK = DFlashConfig(4, 1, 32, 8, ffn_width=48, feature_layers=(0, 1), markov_rank=6)
EAGLE = EagleConfig(3, 32, 8, ffn_width=48, feature_layers=(0, 1))
LENGTH = 16
MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]
TREE = Tree.named("0,1,2,00,01,10,000")
CODES = jax.random.normal(jax.random.key(2), (V, 2))
VERIFIER_PARAMS = {"neighbors": neighbor_table(CODES, 4), "embedding": CODES}
# Batches that 4 devices divide, and that no number of devices divides.
MANY, FEW_ROWS = 8, 5
PROMPT = jnp.array([0, 2, 1, 1, 0, 2, 2, 1])


@lru_cache
def parameters(int8=False):
    return quantized(random_params(TARGET)) if int8 else random_params(TARGET)


def drafter_parameters(drafter, int8=False):
    params = drafter.init_params(jax.random.key(5))
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(6), x.shape), params
    )
    params = quantized(params) if int8 else params
    return drafter.with_target_params(params, parameters(int8))


def put_on(mesh, params):
    """Parameters sharded by the default rules."""
    sharding = placement(mesh)
    leaves = [
        jax.device_put(x, sharding(path, x.shape)) for path, x in named_leaves(params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def settings(batch=MANY):
    """Prompts and settings of the first of eight different sequences."""
    temperature = [1.0, 0.0, 0.7, 1.0, 1.0, 0.9, 1.0, 0.0]
    top_k, budget = [0, 0, 9, 0, 9, 40, 0, 3], [LENGTH, 11, *[LENGTH] * 6]
    sampling = Sampling.create(
        MANY, temperature=temperature, cfg_scale=2.0, top_k=top_k
    )
    options = {
        "sampling": sampling,
        "keys": batch_keys(3, MANY),
        "stopping": StoppingCriteria.create(
            MANY, max_new_tokens=budget, stop_tokens=[5]
        ),
    }
    return jax.tree.map(lambda x: x[:batch], (PROMPT, options))


def engine_of(drafter=None, tree=None, verifier=None):
    target = Transformer(TARGET).as_target(
        cfg=True, feature_layers=getattr(drafter, "feature_layers", (0,))
    )
    tree, verifier = tree or Tree.root(), verifier or Coupled()
    return Engine(
        target, LENGTH, drafter, tree, verifier, order=("temperature", "top_k")
    )


@lru_cache
def on_one_device(engine, needs_table=False, int8=False):
    table = TABLE if needs_table else None
    prompt, options = settings()
    variables = Variables(parameters(int8), table, VERIFIER_PARAMS)
    return jax.jit(engine.generate)(variables, prompt, **options)


TABLE = {"table": jax.random.normal(jax.random.key(1), (2, V, V))}


def on_mesh(mesh, engine, drafter_params, int8=False):
    batch = batch_size(mesh)
    prompt, options = settings(batch)
    prompt, options = pad_batch(mesh, prompt, **options)
    if drafter_params is not None:
        drafter_params = put_on(mesh, drafter_params)
    params = put_on(mesh, parameters(int8))
    variables = Variables(params, drafter_params, VERIFIER_PARAMS)
    run = jax.jit(over_batch(mesh, engine.generate))
    out = run(variables, prompt, **options)
    assert out.tokens.shape[0] % mesh.shape["data"] == 0
    assert out.stats.rounds == out.stats.calls.max() - 1
    return jax.tree.map(lambda x: x[:batch] if x.ndim else x, out)


def batch_size(mesh):
    """Number of sequences, which "data" divides on some meshes only."""
    return FEW_ROWS if mesh.shape["data"] in (8, 2) else MANY


def assert_same(actual, expected):
    batch = len(actual.tokens)
    np.testing.assert_array_equal(actual.tokens, expected.tokens[:batch])
    np.testing.assert_array_equal(actual.lengths, expected.lengths[:batch])


DRAFTERS = {
    "block": (DFlash(BLOCK, TARGET), Beam(9, 3, 4, 3), drafter_parameters),
    "eagle-3": (Eagle(EAGLE, TARGET), TREE, drafter_parameters),
    "jacobi": (Jacobi(V), TREE, None),
    "grid jacobi": (GridJacobi(V, TARGET.grid, "halton"), TREE, None),
    "recycling": (TokenRecycling(V, 4), TREE, None),
    "n-grams": (NgramTable(V, buckets=64, width=4), TREE, None),
    "small": (
        DraftModel(Transformer(SMALL).as_target(cfg=False)),
        TREE,
        lambda _: random_params(SMALL),
    ),
}
FEW = [("jacobi", (2, 4))]
ALL = [(name, mesh) for name in DRAFTERS for mesh in MESHES]


def slow_unless(few, cases):
    return [
        pytest.param(*case, marks=() if case in few else pytest.mark.slow)
        for case in cases
    ]


@pytest.mark.parametrize("name, mesh", slow_unless(FEW, ALL))
def test_any_mesh_generates_the_tokens_of_one_device(name, mesh):
    drafter, tree, params = DRAFTERS[name]
    params = params and params(drafter)
    actual = on_mesh(make_mesh(*mesh), engine_of(drafter, tree), params)
    assert_same(actual, on_one_device(engine_of()))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 4), (4, 2)])
def test_caches_of_all_groups_grow_before_any_sequence_lacks_slots(mesh):
    """Groups of several devices loop in step; the fastest sequence decides growth."""
    engine = engine_of(TableDrafter(), TREE)
    fast = replace(engine, cache_stages=4, tree=Tree.chain(4))
    actual = on_mesh(make_mesh(*mesh), fast, TABLE)
    assert_same(actual, on_one_device(engine_of()))


@pytest.mark.slow
def test_int8_matrices_are_sharded_as_others():
    drafter, tree, _ = DRAFTERS["block"]
    engine, params = engine_of(drafter, tree), drafter_parameters(drafter, int8=True)
    mesh = make_mesh(2, 4)
    actual = on_mesh(mesh, engine, params, int8=True)
    assert_same(actual, on_one_device(engine_of(), int8=True))
    for path, x in named_leaves(put_on(mesh, params)):
        if path.endswith(("kernel_scale", "head_scale")):
            whole = any(name in path for name in ("out/", "down/", "project/"))
            assert whole or x.addressable_shards[0].data.size * 4 == x.size, path


def first_is_large(_, features):
    """Classifier of features, `[B, N, E]` to `[B, N]`, for the verifier `Judge`."""
    return features[..., 0]


VERIFIERS = {
    "coupled": (Coupled(), TREE),
    "rejection": (Rejection(), TREE),
    "stochastic beam": (Rejection(), StochasticBeam(2, 2)),
    "with replacement": (Rejection("with_replacement"), TREE),
    "top": (Rejection("top"), TREE),
    "k-seq": (KSeq(), TREE),
    "greedy set": (GreedySet(), TREE),
    "block": (Block(), Tree.chain(3)),
    "lantern": (Lantern(3, delta=0.2), TREE),
    "lantern++": (Lantern(3, lam=3.0), TREE),
    "relaxed": (CoupledRelaxed(3, budget=0.3), TREE),
    "grouped": (Grouped(group=3, distance=9.0, gap=0.5), TREE),
    "annealed": (Annealed(1.5), TREE),
    "typical": (Typical(), TREE),
    "judge": (Judge(first_is_large), TREE),
}
FEW_VERIFIERS = [("lantern++", (2, 4))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, mesh",
    slow_unless(FEW_VERIFIERS, [(n, m) for n in VERIFIERS for m in MESHES]),
)
def test_verifiers_decide_the_same_on_a_mesh(name, mesh):
    verifier, tree = VERIFIERS[name]
    engine = engine_of(TableDrafter(), tree, verifier)
    assert_same(on_mesh(make_mesh(*mesh), engine, TABLE), on_one_device(engine, True))


@pytest.mark.slow
def test_a_loop_over_single_rounds():
    mesh = make_mesh(2, 4)
    drafter, tree, params = DRAFTERS["block"]
    engine = engine_of(drafter, tree)
    batch = batch_size(mesh)
    prompt, options = settings(batch)
    prompt, options = pad_batch(mesh, prompt, **options)
    variables = Variables(put_on(mesh, parameters()), put_on(mesh, params(drafter)))
    state = jax.jit(over_batch(mesh, engine.init))(variables, prompt, **options)
    step = jax.jit(over_batch(mesh, engine.step), donate_argnums=1)
    while not state.done.all():
        state = step(variables, state)
    expected = on_one_device(engine_of())
    filled = np.arange(LENGTH) < expected.lengths[:batch, None]
    tokens = np.where(filled, state.tokens[:batch, :LENGTH], -1)
    np.testing.assert_array_equal(tokens, expected.tokens[:batch])
    buffer = state.cache.layers[0][0]  # [R, K, S, F]: R along data, K along model
    assert {s.data.shape[:2] for s in buffer.addressable_shards} == {(6, 2)}


def test_batches_that_do_not_divide_are_refused():
    run = over_batch(make_mesh(4, 2), engine_of().generate)
    with pytest.raises(ConfigError, match="5 sequences do not divide .* 4 .*pad_batch"):
        prompt, options = settings(FEW_ROWS)
        run(Variables(parameters()), prompt, **options)
