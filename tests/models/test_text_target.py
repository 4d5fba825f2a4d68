"""A model of text goes on from prompts of any length, and drafters read them too."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import (
    DFlashConfig,
    EagleConfig,
    FalconConfig,
    TransformerConfig,
)
from jaxspec.drafters.block_diffusion import DFlash
from jaxspec.drafters.falcon import Falcon
from jaxspec.drafters.feature_head import Eagle
from jaxspec.drafters.prompt_lookup import PromptLookup
from jaxspec.errors import ConfigError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import TokenPrompt, Transformer
from jaxspec.spec.loop import init_state
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine
from jaxspec.testing.properties import assert_fresh_cache, run_rounds
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=17, layers=2, width=32, heads=2, rope="sequence", max_length=48,
    condition="none", classes=1,
)  # fmt: skip
MODEL, PARAMS = Transformer(CONFIG), random_params(CONFIG)
PROMPT = jnp.array([[3, 1, 4, 1, 5], [9, -1, -1, -1, -1], [2, 6, 5, -1, -1]])
TREE = named_tree("0,1,2,00,01,000")
LENGTH = 12
BLOCK = DFlashConfig(4, 1, 32, 2, ffn_width=48, feature_layers=(0, 1), markov_rank=4)
DRAFTERS = {
    "block": DFlash(BLOCK, CONFIG),
    "eagle-3": Eagle(EagleConfig(3, 32, 2, None, 48, feature_layers=(0, 1)), CONFIG),
    "falcon": Falcon(FalconConfig(2, 32, 2, 48), CONFIG),
}


@jax.jit
def score_at(tokens, last):
    return MODEL.score(PARAMS, None, tokens, at=last)[0][0, 0]


def said(tokens):
    """Scores after these tokens, by a whole pass; what is behind does not matter."""
    padded = jnp.array([tokens + [0] * (32 - len(tokens))])
    return score_at(padded, jnp.array([len(tokens) - 1]))


@lru_cache
def by_hand():
    """Greedy tokens of each row, one whole pass a token."""
    rows = []
    for prompt in np.asarray(PROMPT):
        tokens = [int(t) for t in prompt if t >= 0]
        for _ in range(LENGTH):
            tokens.append(int(said(tokens).argmax()))
        rows.append(tokens[-LENGTH:])
    return np.array(rows)


@pytest.mark.parametrize("name", ["prompt lookup", *DRAFTERS])
def test_drafted_text_is_what_the_model_says_by_itself(name):
    drafter = DRAFTERS.get(name) or PromptLookup()
    params = None
    if name in DRAFTERS:
        own = drafter.init_params(jax.random.key(1))
        params = drafter.with_target_params(own, PARAMS)
    engine, state = run_rounds(
        make_target(
            MODEL, guided=False, feature_layers=getattr(drafter, "feature_layers", ())
        ),
        PARAMS,
        drafter,
        params,
        TREE,
        PROMPT,
        length=LENGTH,
        rows=3,
        sampling=make_sampling(3, temperature=0.0),
        order=("temperature",),
    )
    np.testing.assert_array_equal(state.tokens[:, :LENGTH], by_hand())
    assert_fresh_cache(engine, PARAMS, PROMPT, state)


def test_near_ties_are_scored_without_a_cache_behind_each_rows_prompt():
    target = make_target(MODEL, guided=False)
    tokens = jax.random.randint(jax.random.key(2), (3, LENGTH), 0, 17)
    index = jnp.array([0, 3, 7])
    assert target.rescore is not None
    found = target.rescore(PARAMS, PROMPT, tokens, index)
    for row in range(3):
        stream = [int(t) for t in PROMPT[row] if t >= 0]
        stream += [int(t) for t in tokens[row, : index[row]]]
        wanted, _ = MODEL.score(PARAMS, None, jnp.array([stream]))
        np.testing.assert_allclose(found[row], wanted[0, -1], atol=1e-4)


NULL = jnp.array([[7, -1], [7, 8], [11, 7]])
SCALES = jnp.array([1.5, 3.0, 0.5])


@lru_cache
def guided_by_hand():
    """Greedy tokens of each row and its unconditional double, each a whole pass."""
    rows = []
    for given, null, scale in zip(PROMPT, NULL, SCALES, strict=True):
        drawn: list[int] = []
        for _ in range(LENGTH):
            streams = [[int(t) for t in x if t >= 0] + drawn for x in (given, null)]
            yes, no = (said(x) for x in streams)
            drawn.append(int((no + scale * (yes - no)).argmax()))
        rows.append(drawn)
    return np.array(rows)


@pytest.mark.parametrize("name", ["prompt lookup", *DRAFTERS])
def test_guided_text_reads_a_prompt_for_each_stream(name):
    """The prompts of the two streams are of different lengths."""
    drafter, params = DRAFTERS.get(name) or PromptLookup(), None
    if name in DRAFTERS:
        params = drafter.with_target_params(
            drafter.init_params(jax.random.key(1)), PARAMS
        )
    prompt = TokenPrompt(PROMPT, NULL)
    engine, state = run_rounds(
        make_target(
            MODEL, guided=True, feature_layers=getattr(drafter, "feature_layers", ())
        ),
        PARAMS,
        drafter,
        params,
        TREE,
        prompt,
        length=LENGTH,
        rows=3,
        sampling=make_sampling(3, temperature=0.0, cfg_scale=SCALES),
        order=("temperature",),
    )
    np.testing.assert_array_equal(state.tokens[:, :LENGTH], guided_by_hand())
    assert_fresh_cache(engine, PARAMS, prompt, state)


@pytest.mark.parametrize("name", ["eagle-3", "falcon"])
def test_heads_read_in_each_stream_the_prompt_of_that_stream(name):
    """As they do where that stream is the only one."""
    drafter = DRAFTERS[name]
    params = drafter.with_target_params(drafter.init_params(jax.random.key(1)), PARAMS)
    null = jnp.array([[7, -1, -1, -1, -1], [7, 8, 3, 2, 1], [11, 7, -1, -1, -1]])

    def drafter_state(prompt, guided):
        target = make_target(
            MODEL, guided=guided, feature_layers=drafter.feature_layers
        )
        engine = Engine(target, LENGTH, drafter, TREE)
        sampling, keys = make_sampling(3, cfg_scale=2.0), batch_keys(0, 3)
        return init_state(engine, PARAMS, params, prompt, sampling, keys).drafter

    both = drafter_state(TokenPrompt(PROMPT, null), guided=True).cache.layers
    alone = [
        drafter_state(prompt, guided=False).cache.layers for prompt in (PROMPT, null)
    ]
    for found, *parts in zip(
        jax.tree.leaves(both), *map(jax.tree.leaves, alone), strict=True
    ):
        np.testing.assert_allclose(found, jnp.concatenate(parts), atol=1e-5)


def test_streams_without_their_prompts_are_refused():
    small = Transformer(replace(CONFIG, layers=1))
    with pytest.raises(ConfigError, match=r"needs TokenPrompt\(given, null\)"):
        make_target(small, guided=True).prefill(PARAMS, PROMPT, 4)
    with pytest.raises(ConfigError, match="guided=True"):
        make_target(small, guided=False).prefill(PARAMS, TokenPrompt(PROMPT, NULL), 4)
