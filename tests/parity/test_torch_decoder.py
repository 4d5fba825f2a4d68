# ruff: noqa: E402
"""The PyTorch decoder that speed is compared with samples what ours samples."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.bench import passes
from jaxspec.bench.peers import torch_baselines
from jaxspec.bench.peers.torch_decoder import TorchDecoder, torch_loop
from jaxspec.bench.synthetic import synthetic_params
from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer

pytestmark = pytest.mark.parity

CONFIG = TransformerConfig(
    vocab_size=50, layers=3, width=64, heads=4, kv_heads=2, grid=5, classes=3
)


@pytest.fixture(scope="module")
def params():
    found = synthetic_params(CONFIG, "float32")
    return {**found, "head": 10 * found["head"]}  # far from ties


def test_the_greedy_tokens_are_ours(params):
    decoder = TorchDecoder(CONFIG, params, batch=2, length=25)
    tokens = torch_loop(decoder, decoder.greedy)
    assert tokens.shape == (2, 25) and len(set(tokens[0])) > 5
    last = passes.forward_program(
        Transformer(CONFIG), params, 2, 25, passes.local_compiler()
    )()
    np.testing.assert_array_equal(tokens[:, -1], last)


def test_scores_of_one_position_are_ours(params):
    decoder = TorchDecoder(CONFIG, params, batch=2, length=25)
    with torch.inference_mode():
        classes = torch.tensor([1, 2])
        theirs = decoder(decoder.prefix(classes), torch.tensor([0]))
    prompt = jnp.array([1, 2])
    ours = make_target(Transformer(CONFIG)).prefill(params, prompt, 1).logits
    guided = ours[2:] + decoder.scale * (ours[:2] - ours[2:])
    np.testing.assert_allclose(theirs.numpy(), guided, atol=1e-4)


def test_a_step_draws_from_the_law_of_its_scores(params):
    decoder = TorchDecoder(CONFIG, params, batch=512, length=1)
    torch.manual_seed(0)
    with torch.inference_mode():
        x, place = decoder.prefix(torch.zeros(512, dtype=torch.long)), torch.tensor([0])
        law = torch.softmax(decoder(x, place)[0], dim=-1).numpy()
        drawn = np.bincount(decoder.sample(x, place).numpy(), minlength=50) / 512
    assert np.abs(drawn - law).sum() / 2 < 0.15
    assert np.abs(np.roll(drawn, 1) - law).sum() / 2 > 0.3  # the control


def test_both_ways_are_offered_where_pytorch_is(params):
    calls = torch_baselines(CONFIG, params, 1, 2)
    assert list(calls) == ["torch eager", "torch.compile"]
    assert calls["torch eager"]().shape == (1, 2)


def test_models_that_the_twin_cannot_be_are_refused(params):
    from dataclasses import replace

    with pytest.raises(ConfigError, match="qk_norm"):
        TorchDecoder(replace(CONFIG, qk_norm=True), params, 1, 1)
