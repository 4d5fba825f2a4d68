"""Arguments that do not fit raise a clear error, wherever they enter the engine."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.noise import batch_keys, draw_noise, position_noise, seed_key
from jaxspec.core.precision import use_x64
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam
from jaxspec.speculative.trees.topology import Topology, static_topology
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Rejection
from jaxspec.testing.toy import toy_params, toy_target

V, B = 5, 2
TREE = Tree.named("0,1,00")
PARAMS = toy_params(V, 20)
PROMPT = jnp.zeros(B, jnp.int32)
POSITIONS = jnp.tile(jnp.arange(TREE.depth + 1), (B, 1))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (jax.random.PRNGKey(0), "an array of uint32, not of typed keys"),
        (np.zeros((B, 2), np.uint32), "wrap raw words with jax.random.wrap_key_data"),
        (7, "an array of int, not of typed keys"),
        (jax.random.key(0, impl="threefry2x32"), r"shape \[\]; give one"),
        (batch_keys(0, 4).reshape(2, 2), r"shape \[2, 2\]; give one"),
        (jax.random.split(jax.random.key(0, impl="rbg"), B), "of the kind rbg"),
    ],
)
@pytest.mark.parametrize("entry", ["generate", "init", "draw_noise", "noise"])
def test_keys_are_typed_with_one_per_sequence(keys, words, entry):
    engine = Engine(toy_target(V), 4)
    settings = Sampling.create(B)
    enter = {
        "generate": lambda: engine.generate(
            Variables(PARAMS), PROMPT, sampling=settings, keys=keys
        ),
        "init": lambda: engine.init(
            Variables(PARAMS), PROMPT, sampling=settings, keys=keys
        ),
        "draw_noise": lambda: draw_noise(keys, POSITIONS, TREE.size, V),
        "noise": lambda: position_noise(keys, POSITIONS, V),
    }
    if entry in ("generate", "init") and getattr(keys, "shape", None) == ():
        return  # the engine makes a key for each sequence, see below
    with pytest.raises(ConfigError, match=words):
        enter[entry]()


def test_a_single_key_is_expanded_to_one_per_sequence():
    engine, sampling = Engine(toy_target(V), 4), Sampling.create()
    run = jax.jit(engine.generate)
    one = run(Variables(PARAMS), PROMPT, sampling=sampling, keys=seed_key(3))
    each = run(Variables(PARAMS), PROMPT, sampling=sampling, keys=batch_keys(3, B))
    np.testing.assert_array_equal(one.tokens, each.tokens)


def test_settings_of_another_batch_size_are_refused():
    engine, one = Engine(toy_target(V), 4), Sampling.create(1)
    state = engine.init(
        Variables(PARAMS), PROMPT, sampling=Sampling.create(B), keys=batch_keys(0, B)
    )
    logits, index = jnp.zeros((B, V)), jnp.zeros(B, jnp.int32)
    for run in (
        lambda: engine.generate(
            Variables(PARAMS), PROMPT, sampling=one, keys=batch_keys(0, B)
        ),
        lambda: engine.step(Variables(PARAMS), replace(state, sampling=one)),
        lambda: process_logits(logits, one),
        lambda: apply_cfg(logits, one, index),
        lambda: apply_cfg(jnp.zeros((3, V)), Sampling.create(B), index),
        lambda: position_noise(batch_keys(0, B), POSITIONS[:1], V),
    ):
        with pytest.raises(ConfigError, match="rows|sequences"):
            run()


GOOD = Draft(
    jnp.zeros((B, TREE.size), jnp.int32),
    jnp.ones((B, TREE.size), bool),
    log_q=jnp.full((B, len(TREE.internal), V), -np.log(V)),
    selection="without_replacement",
)


@pytest.mark.variants(10)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": jnp.zeros((B, 3), jnp.int32)}, r"Draft.tokens is int32 \[2, 3\]"),
        ({"tokens": jnp.zeros((B, 4))}, r"needs integer \[B, 4\]"),
        ({"valid": jnp.ones((1, 4), bool)}, r"Draft.valid is bool \[1, 4\]"),
        ({"valid": jnp.ones((B, 4))}, r"needs bool"),
        ({"log_q": GOOD.log_q[:1]}, r"Draft.log_q has shape \[1, 2, 5\]"),
        ({"log_q": GOOD.log_q[:, :1]}, r"this draft needs \[2, 2, 5\]"),
        ({"log_q": GOOD.log_q[..., :3]}, r"Draft.log_q has shape \[2, 2, 3\]"),
        ({"log_q": GOOD.log_q[..., 0]}, r"Draft.log_q has shape \[2, 2\]"),
        ({"parents": jnp.zeros((1, 4), jnp.int32)}, r"Draft.parents is int32 \[1, 4\]"),
        ({"confidence": jnp.zeros(B)}, r"Draft.confidence is float32 \[2\]"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "verifier", [Rejection(), Coupled()], ids=["rejection", "coupled"]
)
def test_arrays_of_a_draft_fit_its_tree(verifier, change, words):
    noise = draw_noise(batch_keys(0, B), POSITIONS, TREE.size, V)
    scores = jnp.zeros((B, TREE.size, V))
    verifier.verify(scores, GOOD, TREE, noise)
    with pytest.raises(ConfigError, match=words):
        verifier.verify(scores, replace(GOOD, **change), TREE, noise)


def test_scores_and_noise_fit_the_draft():
    noise = draw_noise(batch_keys(0, B), POSITIONS, TREE.size, V)
    scores = jnp.zeros((B, TREE.size, V))
    few = draw_noise(batch_keys(0, 1), POSITIONS[:1], TREE.size, V)
    shallow = draw_noise(batch_keys(0, B), POSITIONS[:, :1], TREE.size, V)
    for verifier in (Coupled(), Rejection()):
        for bad in (scores[:1], scores[:, 1:], scores[0]):
            with pytest.raises(ConfigError, match=r"target scores have shape \["):
                verifier.verify(bad, GOOD, TREE, noise)
        for bad in (few, shallow):
            with pytest.raises(ConfigError, match="make it with draw_noise"):
                verifier.verify(scores, GOOD, TREE, bad)


# --- Seeds ---------------------------------------------------------------------------


def words(seed):
    return tuple(np.asarray(jax.random.key_data(seed_key(seed))).tolist())


def test_no_two_seeds_of_64_bits_share_a_key():
    seeds = [
        0,
        1,
        -1,
        2**31,
        2**32 - 1,
        2**32,
        2**32 + 1,
        -(2**32),
        2**63 - 1,
        -(2**63),
    ]
    assert len({words(seed) for seed in seeds}) == len(seeds)
    first = {
        tuple(jax.random.key_data(batch_keys(s, 3)).ravel().tolist()) for s in seeds
    }
    assert len(first) == len(seeds)
    with use_x64(True):  # numbers of 64 bits change nothing
        assert [words(seed) for seed in seeds] == [words(np.int64(s)) for s in seeds]
        wide = jax.random.key_data(batch_keys(5, 3))
    np.testing.assert_array_equal(wide, jax.random.key_data(batch_keys(5, 3)))


def test_training_takes_all_bits_of_its_seed():
    """No key of a training is made from the lower half of a seed alone."""
    package = Path(jaxspec.__file__).parent
    for file in (package / "train").rglob("*.py"):
        assert "random.key(" not in file.read_text("utf-8"), file


def test_small_seeds_are_those_of_jax():
    for seed in (0, 7, 2**31 - 1):
        assert seed_key(seed) == jax.random.key(seed, impl="threefry2x32")


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 1.5, "1", None])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ConfigError, match="fits in 64 bits"):
        batch_keys(seed, 2)


# --- Pytrees -------------------------------------------------------------------------


def test_topologies_pass_through_transformations():
    x = jnp.arange(B * TREE.size).reshape(B, TREE.size)
    grown = replace(GOOD, parents=jnp.zeros((B, 4), jnp.int32), log_q=None)
    for shape in (static_topology(TREE), grown.topology(Beam(4, 2))):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(shape))
        found = jax.jit(Topology.gather_internal)(shape, x)
        np.testing.assert_array_equal(found, shape.gather_internal(x))
        node = jnp.array([1, 3])
        carried, paths = jax.lax.scan(lambda t, n: (t, t.path(n)), shape, node[None])
        np.testing.assert_array_equal(paths[0], shape.path(node))
        assert carried.path_length == shape.path_length
    both = jax.lax.cond(True, lambda t: t, lambda t: t, static_topology(TREE))
    assert both.internal == static_topology(TREE).internal
    assert jax.jit(partial(lambda t: t))(both).path_length == TREE.depth + 1
