"""Traced programs of generation: precision of products, types of sums."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.trees.dynamic import Beam, BestFirst
from jaxspec.speculative.trees.tree import Tree
from tests.drafters.tiny_block import TARGET, block_drafter
from tests.models.tiny import TINY, random_params

LENGTH = TARGET.grid**2
CLASSES = jnp.array([0, 2, 1])
ROWS = len(CLASSES)


def equations(jaxpr):
    """All equations of a traced program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@lru_cache
def traced(tree):
    """Equations of a whole generation, and the shapes they are traced with."""
    drafter, own, params = block_drafter()
    target = Transformer(TARGET).as_target(
        cfg=True, feature_layers=drafter.config.feature_layers
    )
    engine = Engine(target, LENGTH, drafter, tree)
    program = jax.make_jaxpr(engine.generate)(
        engine.variables(params, own),
        CLASSES,
        sampling=Sampling.create(cfg_scale=2.0),
        keys=batch_keys(0, ROWS),
    )
    return list(equations(program.jaxpr))


def imprecise(found):
    """Products of float32 numbers that a device may compute with fewer bits."""
    highest = (jax.lax.Precision.HIGHEST,) * 2
    return [
        e
        for e in found
        if e.primitive.name == "dot_general"
        and any(x.aval.dtype == jnp.float32 for x in e.invars)
        and e.params["precision"] != highest
    ]


@pytest.mark.slow
def test_float32_products_have_full_precision():
    """Passes of different width differ by float32 rounding, not TF32 or bfloat16."""
    found = traced(Tree.named("0,1,00"))
    assert sum(e.primitive.name == "dot_general" for e in found) > 20
    assert imprecise(found) == []
    params = random_params(TINY)
    bare = jax.make_jaxpr(partial(Transformer(TINY).score, params, jnp.zeros(1, int)))
    bare = bare(jnp.zeros((1, 4), jnp.int32))
    assert imprecise(equations(bare.jaxpr)) != []


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "tree", [Tree.named("0,1,00"), Beam(6, 3, 4, 3), BestFirst(6, 3)], ids=str
)
def test_scatters_add_integers_only(tree):
    """Sums of floats would depend on the order in which duplicates arrive."""
    adds = [
        e for e in traced(tree) if e.primitive.name in ("scatter-add", "scatter_add")
    ]
    assert adds
    for equation in adds:
        assert jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.integer), equation
