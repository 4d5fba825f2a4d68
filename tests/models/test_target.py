"""Targets, drafters and engines are equal to their copies, hashable and picklable."""

import copy
import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from docs.studies.overhead import fixed_target
from jaxspec.config import TransformerConfig
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.combine.adaptive import Adaptive, ConfidenceCutoff
from jaxspec.drafters.draft_model.drafter import DraftModel
from jaxspec.drafters.kangaroo.drafter import adapted
from jaxspec.drafters.masked.diffuspec import DiffuSpec
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Lantern
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.tiny import FEATURES, TABLES, TARGET

TEXT = TransformerConfig(
    vocab_size=8, layers=1, width=8, heads=2, rope="sequence", condition="none"
)
TARGETS = {
    "classes": lambda: Transformer(TARGET).as_target(feature_layers=(0, 2)),
    "captions": lambda: Transformer(
        replace(TARGET, condition="caption", caption_length=3)
    ).as_target(),
    "kernels": lambda: Transformer(TARGET, "pallas").as_target(cfg=False),
    "text": lambda: Transformer(TEXT).as_target(cfg=False),
    "guided text": lambda: Transformer(TEXT).as_target(),
    "kangaroo": lambda: adapted(FEATURES["kangaroo"][0]),
    "toy": lambda: toy_target(6, 2),
    "fixed": lambda: fixed_target(6, 2, TARGET, jnp.float32),
}
DRAFTERS = {
    **TABLES,
    **FEATURES,
    "masked diffusion": (
        DiffuSpec(MaskedDiffusion(Transformer(TARGET)), TARGET.vocab_size),
        Tree.chain(2),
    ),
    "adaptive": (
        Adaptive(FEATURES["block"][0], ConfidenceCutoff(0.6, "q")),
        Tree.chain(2),
    ),
}


def assert_copies_are_equal(value):
    for other in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert other == value and hash(other) == hash(value)


@pytest.mark.parametrize("name", TARGETS)
def test_equal_arguments_make_equal_targets_and_copies(name):
    target = TARGETS[name]()
    assert target == TARGETS[name]() and hash(target) == hash(TARGETS[name]())
    assert_copies_are_equal(target)


def test_targets_with_any_difference_are_not_equal():
    model = Transformer(TARGET)
    targets = [
        model.as_target(),
        model.as_target(cfg=False),
        model.as_target(feature_layers=(0,)),
        Transformer(TARGET, "pallas").as_target(),
        Transformer(replace(TARGET, layers=2)).as_target(),
    ]
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("name", DRAFTERS)
def test_engines_with_any_drafter_are_equal_to_their_copies(name):
    drafter, tree = DRAFTERS[name]
    target = toy_target(6) if name in TABLES else TARGETS["classes"]()
    engine = Engine(target, 8, drafter, tree, Lantern(2, delta=0.2))
    _ = engine.tree.depth  # cached tables of a tree do not affect equality
    assert_copies_are_equal(engine)


def test_a_copied_engine_takes_the_program_that_was_compiled():
    target = toy_target(6, 2)
    engine = Engine(target, 4, DraftModel(target), Tree.chain(2))
    traces = []

    def run(engine, variables, prompt, keys):
        traces.append(engine)
        sampling = Sampling.create()
        return engine.generate(variables, prompt, sampling=sampling, keys=keys).tokens

    compiled = jax.jit(run, static_argnums=0)
    params = toy_params(6, 12)
    prompt = jnp.zeros(2, jnp.int32)
    arguments = Variables(params, params), prompt, batch_keys(0, 2)
    expected = compiled(engine, *arguments)
    for other in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine)):
        assert (compiled(other, *arguments) == expected).all()
    assert len(traces) == 1
