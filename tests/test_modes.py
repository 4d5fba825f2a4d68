"""The library inside programs that set JAX's strict and 64-bit modes.

Under each mode the same programs are traced, and have the same results as without.
"""

from contextlib import ExitStack
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.precision import use_x64
from jaxspec.models.classifier.model import Classifier, ClassifierConfig
from jaxspec.models.transformer.model import Transformer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from tests.programs import CAPTION, IMAGES, JANUS, PROGRAMS, TRAINED

MODES = {
    "dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "x64": lambda: use_x64(True),
    "keys": lambda: jax.debug_key_reuse(True),
    "nans": lambda: jax.debug_nans(True),
    "no jit": lambda: jax.disable_jit(),
}
STRICT = ("dtypes", "ranks")
# Programs that run by default; the others are slow.
QUICK = (
    "plain",
    "table: jacobi, grown",
    "table: small model, mixed",
    "rule: kseq",
    "feature: block",
    "tokenizer: both",
    "scales: refined",
    "continuous tokens",
)


def under(modes, function):
    with ExitStack() as held:
        for mode in modes:
            held.enter_context(MODES[mode]())
        return function()


def some(names):
    return [
        pytest.param(name, marks=() if name in names else pytest.mark.slow)
        for name in PROGRAMS
    ]


@pytest.mark.variants(2)
@pytest.mark.parametrize("name", some(QUICK))
def test_no_program_relies_on_promotion(name):
    """Dtypes and ranks are written out; this shows while a program is traced."""
    found = under(STRICT, lambda: jax.eval_shape(PROGRAMS[name]))
    assert jax.tree.leaves(found)


@pytest.mark.variants(3)
@pytest.mark.parametrize("name", some(QUICK))
def test_every_result_has_the_same_dtype_under_x64(name):
    found = under(["x64"], lambda: jax.eval_shape(PROGRAMS[name]))
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype in (jnp.int32, jnp.float32, bool)


MODELS = {
    "captions": Transformer(CAPTION).init,
    "a head of two layers": Transformer(JANUS).init,
    "tokenizer": Tokenizer(IMAGES).init,
    "classifier": Classifier(ClassifierConfig(8, 3, 2, (8, 8))).init,
    **{name: made.init_params for name, made in TRAINED.items()},
}


@pytest.mark.parametrize("name", MODELS)
def test_initial_parameters_are_float32_under_x64(name):
    found = under(["x64"], lambda: jax.eval_shape(MODELS[name], jax.random.key(0)))
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype in (jnp.float32, jnp.int32)


@pytest.fixture
def few_programs():
    """Clears compiled programs, of which a process can hold some thousands only."""
    yield
    jax.clear_caches()


@lru_cache
def without(name):
    return jax.tree.map(np.asarray, jax.jit(PROGRAMS[name])())


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", some(("plain",)))
def test_programs_give_what_they_give_without(name, mode, few_programs):
    """Integers are equal; losses and images up to rounding."""
    program = PROGRAMS[name]
    run = program if mode == "no jit" else jax.jit(program)
    found = under([mode], lambda: jax.tree.map(np.asarray, run()))
    jax.tree.map(assert_equal_results, found, without(name))


def assert_equal_results(found, wanted):
    assert found.dtype == wanted.dtype
    if np.issubdtype(found.dtype, np.floating):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    else:
        np.testing.assert_array_equal(found, wanted)
