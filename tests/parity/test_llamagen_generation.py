# ruff: noqa: E402
"""Guided decoding with `Transformer.as_target` against a plain loop in PyTorch."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.sampling import Sampling

torch = pytest.importorskip("torch")

from jaxspec.core.kv_cache import commit_path, tree_mask
from jaxspec.core.logits import apply_cfg
from tests.parity import sampling_twin
from tests.parity.comparing import as_jax, assert_close
from tests.parity.llamagen_pairs import GRID, ROWS, make_pair, make_prompt, make_tokens

pytestmark = pytest.mark.parity

SCALE = 3.0


@pytest.fixture(scope="module", params=["class", "caption"])
def pair(request):
    return make_pair(request.param)


@lru_cache
def compiled(model):
    target = model.as_target()
    prefill = jax.jit(target.prefill, static_argnums=2)
    return target, prefill, jax.jit(target.forward)


def torch_branches(pair, prompt, tokens):
    """Last logits of the PyTorch model, of the conditional branch, then of the null."""
    prefix = torch.cat([prompt.conditional, prompt.null])
    both = [x.repeat(2, 1) for x in (tokens, prompt.real)]
    return pair.torch_model(prefix, *both)[:, -1]


def torch_decode(pair, prompt, length, interval):
    """Tokens and guided logits of greedy decoding without a cache."""
    tokens, scores = make_tokens(0), []
    for index in range(length):
        conditional, unconditional = torch_branches(pair, prompt, tokens).chunk(2)
        step = index - 1  # reads token `step`, decides the next one
        alone = interval >= 0 and step > interval
        guided = sampling_twin.guide(conditional, unconditional, SCALE)
        scores.append(conditional if alone else guided)
        tokens = torch.cat([tokens, scores[-1].argmax(-1, keepdim=True)], dim=1)
    return tokens, torch.stack(scores, dim=1)


def decode(pair, prompt, length, interval):
    """Tokens and guided logits of cached greedy decoding by `as_target`."""
    target, prefill, forward = compiled(pair.model)
    sampling = Sampling.create(ROWS, cfg_scale=SCALE, cfg_interval=interval)
    logits, _, cache = prefill(pair.params, prompt.inputs, length)
    tokens, scores = [], []
    for index in range(length):
        scores.append(apply_cfg(logits, sampling, jnp.full(ROWS, index)))
        tokens.append(jnp.argmax(scores[-1], axis=-1))
        twice = jnp.concatenate([tokens[-1]] * target.branches)[:, None]
        mask = tree_mask(cache, np.ones((1, 1), bool))
        logits, _, cache = forward(
            pair.params, cache, twice, cache.lengths[:, None], mask
        )
        logits = logits[:, 0]
        one = jnp.ones(len(twice), jnp.int32)
        cache = commit_path(cache, 1, jnp.zeros((len(twice), 1), int), one)
    return jnp.stack(tokens, axis=1), jnp.stack(scores, axis=1)


@pytest.mark.parametrize("interval", [-1, 0, 5])
def test_greedy_images_agree(pair, interval):
    prompt, length = make_prompt(pair), GRID**2
    tokens, scores = decode(pair, prompt, length, interval)
    their_tokens, their_scores = torch_decode(pair, prompt, length, interval)
    np.testing.assert_array_equal(np.asarray(tokens), their_tokens.numpy())
    assert_close(scores, their_scores)


def test_rescoring_one_token_ignores_later_ones(pair):
    prompt, tokens, index = make_prompt(pair), make_tokens(), [0, 6, 15]
    target = pair.model.as_target()
    rescore = jax.jit(target.rescore)
    actual = rescore(pair.params, prompt.inputs, as_jax(tokens), jnp.array(index))
    for row, end in enumerate(index):
        reference = torch_branches(pair, prompt, tokens[:, :end])
        assert_close(actual[row], reference[row])
        assert_close(actual[ROWS + row], reference[ROWS + row])
