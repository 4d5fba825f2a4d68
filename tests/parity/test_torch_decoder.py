# ruff: noqa: E402
"""The PyTorch baseline against the decoder in JAX."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dataclasses import replace

from jaxspec.bench import programs
from jaxspec.bench.baselines import torch_baselines
from jaxspec.bench.baselines.torch_decoder import TorchDecoder, torch_loop
from jaxspec.bench.synthetic import synthetic_params
from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.tree_choice.compiling import local_compiler

pytestmark = pytest.mark.parity

CONFIG = TransformerConfig(
    vocab_size=50, layers=3, width=64, heads=4, kv_heads=2, grid=5, classes=3
)


@pytest.fixture(scope="module")
def params():
    params = synthetic_params(CONFIG, "float32")
    return {**params, "head": 10 * params["head"]}  # far from ties


@pytest.mark.parametrize("order", ["raster", "halton"])
def test_greedy_tokens_match(params, order):
    config = CONFIG
    if order != "raster":
        config = replace(CONFIG, order=order, next_cell=True)
        cells = np.random.default_rng(0).normal(size=(25, 64)).astype(np.float32)
        params = {**params, "next_cell": {"cells": {"embedding": cells}}}
    decoder = TorchDecoder(config, params, batch=2, length=25)
    tokens = torch_loop(decoder, decoder.greedy)
    assert tokens.shape == (2, 25) and len(set(tokens[0])) > 5
    # The token of each position, of a program for as many.
    for length in (1, 2, 13, 25):
        last = programs.forward_program(
            Transformer(config), params, 2, length, local_compiler()
        )()
        np.testing.assert_array_equal(tokens[:, length - 1], last)


def test_logits_of_one_position_match(params):
    decoder = TorchDecoder(CONFIG, params, batch=2, length=25)
    with torch.inference_mode():
        classes = torch.tensor([1, 2])
        torch_logits = decoder(decoder.prefix(classes), torch.tensor([0]))
    prompt = jnp.array([1, 2])
    logits = Transformer(CONFIG).as_target().prefill(params, prompt, 1).logits
    guided = logits[2:] + decoder.scale * (logits[:2] - logits[2:])
    np.testing.assert_allclose(torch_logits.numpy(), guided, atol=1e-4)


def test_a_step_samples_from_the_softmax(params):
    decoder = TorchDecoder(CONFIG, params, batch=512, length=1)
    torch.manual_seed(0)
    with torch.inference_mode():
        x, position = (
            decoder.prefix(torch.zeros(512, dtype=torch.long)),
            torch.tensor([0]),
        )
        probs = torch.softmax(decoder(x, position)[0], dim=-1).numpy()
        counts = np.bincount(decoder.sample(x, position).numpy(), minlength=50) / 512
    assert np.abs(counts - probs).sum() / 2 < 0.15
    assert np.abs(np.roll(counts, 1) - probs).sum() / 2 > 0.3  # the control


def test_both_baselines_are_offered(params):
    calls = torch_baselines(CONFIG, params, 1, 2)
    assert list(calls) == ["torch eager", "torch.compile"]
    assert calls["torch eager"]().shape == (1, 2)


def test_unsupported_models_are_rejected(params):
    with pytest.raises(ConfigError, match="qk_norm"):
        TorchDecoder(replace(CONFIG, qk_norm=True), params, 1, 1)
