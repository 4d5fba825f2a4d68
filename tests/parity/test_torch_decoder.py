# ruff: noqa: E402
"""The PyTorch decoder of the benchmarks generates the same as `Transformer`."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.bench import passes
from jaxspec.bench.peers import torch_calls
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
    params = synthetic_params(CONFIG, "float32")
    return {**params, "head": 10 * params["head"]}  # far from ties


def test_greedy_tokens_agree(params):
    decoder = TorchDecoder(CONFIG, params, batch=2, length=25)
    tokens = torch_loop(decoder, decoder.likeliest)
    assert tokens.shape == (2, 25) and len(set(tokens[0])) > 5
    last = passes.forward_loop(
        Transformer(CONFIG), params, 2, 25, passes.build_here()
    )()
    np.testing.assert_array_equal(tokens[:, -1], last)


def test_logits_of_one_position_agree(params):
    decoder = TorchDecoder(CONFIG, params, batch=2, length=25)
    with torch.inference_mode():
        classes = torch.tensor([1, 2])
        reference = decoder(decoder.prefix(classes), torch.tensor([0]))
    prompt = jnp.array([1, 2])
    actual = make_target(Transformer(CONFIG)).prefill(params, prompt, 1).logits
    guided = actual[2:] + decoder.scale * (actual[:2] - actual[2:])
    np.testing.assert_allclose(reference.numpy(), guided, atol=1e-4)


def test_a_step_samples_from_its_logits(params):
    decoder = TorchDecoder(CONFIG, params, batch=512, length=1)
    torch.manual_seed(0)
    with torch.inference_mode():
        x = decoder.prefix(torch.zeros(512, dtype=torch.long))
        position = torch.tensor([0])
        probability = torch.softmax(decoder(x, position)[0], dim=-1).numpy()
        frequency = np.bincount(decoder.sample(x, position).numpy(), minlength=50) / 512
    assert np.abs(frequency - probability).sum() / 2 < 0.15
    assert np.abs(np.roll(frequency, 1) - probability).sum() / 2 > 0.3  # the control


def test_both_methods_are_offered_if_pytorch_is_installed(params):
    calls = torch_calls(CONFIG, params, 1, 2)
    assert list(calls) == ["torch eager", "torch.compile"]
    assert calls["torch eager"]().shape == (1, 2)


def test_unsupported_models_are_refused(params):
    from dataclasses import replace

    with pytest.raises(ConfigError, match="qk_norm"):
        TorchDecoder(replace(CONFIG, qk_norm=True), params, 1, 1)
