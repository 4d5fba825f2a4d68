"""Text models continue prompts of different lengths, with and without drafters."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.training_free.prompt_lookup import PromptLookup
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.prompts import TokenPrompt
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.properties import assert_fresh_cache, run_rounds
from tests.models.text import CONFIG, DRAFTERS, MODEL, NULL, PARAMS, PROMPT

TREE = Tree.named("0,1,2,00,01,000")
LENGTH = 12


@jax.jit
def score_at(tokens, last):
    return MODEL.score(PARAMS, None, tokens, at=last)[0][0, 0]


def next_logits(tokens):
    """Logits after the tokens, by a full pass over a padded sequence."""
    padded = jnp.array([tokens + [0] * (32 - len(tokens))])
    return score_at(padded, jnp.array([len(tokens) - 1]))


@lru_cache
def reference_tokens():
    """Greedy tokens of each sequence, with one full pass per token."""
    sequences = []
    for prompt in np.asarray(PROMPT):
        tokens = [int(t) for t in prompt if t >= 0]
        for _ in range(LENGTH):
            tokens.append(int(next_logits(tokens).argmax()))
        sequences.append(tokens[-LENGTH:])
    return np.array(sequences)


@pytest.mark.variants(1)
@pytest.mark.parametrize("name", ["prompt lookup", *DRAFTERS])
def test_drafts_do_not_change_the_text(name):
    drafter = DRAFTERS.get(name) or PromptLookup()
    params = None
    if name in DRAFTERS:
        drafter_params = drafter.init_params(jax.random.key(1))
        params = drafter.with_target_params(drafter_params, PARAMS)
    engine, state = run_rounds(
        MODEL.as_target(
            cfg=False, feature_layers=getattr(drafter, "feature_layers", ())
        ),
        PARAMS,
        drafter,
        params,
        TREE,
        PROMPT,
        length=LENGTH,
        batch=3,
        sampling=Sampling.create(3, temperature=0.0),
        order=("temperature",),
    )
    np.testing.assert_array_equal(state.tokens[:, :LENGTH], reference_tokens())
    assert_fresh_cache(engine, PARAMS, PROMPT, state)


@pytest.mark.slow
def test_rescoring_follows_prompts_of_different_lengths():
    target = MODEL.as_target(cfg=False)
    tokens = jax.random.randint(jax.random.key(2), (3, LENGTH), 0, 17)
    index = jnp.array([0, 3, 7])
    assert target.rescore is not None
    logits = target.rescore(PARAMS, PROMPT, tokens, index)
    for b in range(3):
        sequence = [int(t) for t in PROMPT[b] if t >= 0]
        sequence += [int(t) for t in tokens[b, : index[b]]]
        expected, _ = MODEL.score(PARAMS, None, jnp.array([sequence]))
        np.testing.assert_allclose(logits[b], expected[0, -1], atol=1e-4)


SCALES = jnp.array([1.5, 3.0, 0.5])


@lru_cache
def guided_reference_tokens():
    """Greedy tokens with guidance, by full passes over both branches."""
    sequences = []
    for prompt, null, scale in zip(PROMPT, NULL, SCALES, strict=True):
        tokens: list[int] = []
        for _ in range(LENGTH):
            branches = [[int(t) for t in x if t >= 0] + tokens for x in (prompt, null)]
            cond, uncond = (next_logits(x) for x in branches)
            tokens.append(int((uncond + scale * (cond - uncond)).argmax()))
        sequences.append(tokens)
    return np.array(sequences)


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("name", ["prompt lookup", *DRAFTERS])
def test_guided_text_reads_one_prompt_per_branch(name):
    """The prompts of the two branches have different lengths."""
    drafter, params = DRAFTERS.get(name) or PromptLookup(), None
    if name in DRAFTERS:
        params = drafter.with_target_params(
            drafter.init_params(jax.random.key(1)), PARAMS
        )
    prompt = TokenPrompt(PROMPT, NULL)
    engine, state = run_rounds(
        MODEL.as_target(
            cfg=True, feature_layers=getattr(drafter, "feature_layers", ())
        ),
        PARAMS,
        drafter,
        params,
        TREE,
        prompt,
        length=LENGTH,
        batch=3,
        sampling=Sampling.create(3, temperature=0.0, cfg_scale=SCALES),
        order=("temperature",),
    )
    np.testing.assert_array_equal(state.tokens[:, :LENGTH], guided_reference_tokens())
    assert_fresh_cache(engine, PARAMS, prompt, state)


@pytest.mark.variants(1)
@pytest.mark.parametrize("name", ["eagle-3", "falcon"])
@pytest.mark.slow
def test_drafters_read_the_prompt_of_each_branch(name):
    """The drafter caches equal those of runs with one branch only."""
    drafter = DRAFTERS[name]
    params = drafter.with_target_params(drafter.init_params(jax.random.key(1)), PARAMS)
    null = jnp.array([[7, -1, -1, -1, -1], [7, 8, 3, 2, 1], [11, 7, -1, -1, -1]])

    def drafter_state(prompt, guided):
        target = MODEL.as_target(cfg=guided, feature_layers=drafter.feature_layers)
        engine = Engine(target, LENGTH, drafter, TREE)
        sampling = Sampling.create(3, cfg_scale=2.0 if guided else 1.0)
        keys = batch_keys(0, 3)
        return engine.init(
            Variables(PARAMS, params), prompt, sampling=sampling, keys=keys
        ).drafter

    both = drafter_state(TokenPrompt(PROMPT, null), guided=True).cache.layers
    separate = [
        drafter_state(prompt, guided=False).cache.layers for prompt in (PROMPT, null)
    ]
    for joint, *parts in zip(
        jax.tree.leaves(both), *map(jax.tree.leaves, separate), strict=True
    ):
        np.testing.assert_allclose(joint, jnp.concatenate(parts), atol=1e-5)


def test_prompts_of_the_wrong_kind_are_refused():
    small = Transformer(replace(CONFIG, layers=1))
    with pytest.raises(ConfigError, match=r"needs TokenPrompt\(given, null\)"):
        small.as_target(cfg=True).prefill(PARAMS, PROMPT, 4)
    with pytest.raises(ConfigError, match="cfg=True"):
        small.as_target(cfg=False).prefill(PARAMS, TokenPrompt(PROMPT, NULL), 4)
