# ruff: noqa: E402
"""Logits of whole sequences against the PyTorch LlamaGen."""

import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")

from tests.parity.comparing import as_jax, assert_close
from tests.parity.llamagen_pairs import make_pair, make_prompt, make_tokens, score

pytestmark = pytest.mark.parity

# With a head size of 12 each axis of the grid has an odd number of pairs, as in 3B.
PAIRS = {
    "class": dict(condition="class"),
    "class, grouped heads": dict(condition="class", width=32, heads=4, kv_heads=2),
    "caption": dict(condition="caption"),
    "other settings": dict(
        condition="class", config={"rope_base": 500, "norm_eps": 0.01}
    ),
}
NULL = torch.tensor([False, True, False])


@pytest.fixture(scope="module", params=PAIRS.values(), ids=PAIRS)
def pair(request):
    return make_pair(**request.param)


def both_outputs(pair, null):
    """Logits and features of `Transformer`; layer outputs of the PyTorch model."""
    prompt, tokens = make_prompt(pair), make_tokens()
    null_rows = jnp.asarray(null.numpy())
    actual = score(
        pair.model,
        pair.params,
        prompt.inputs,
        as_jax(tokens),
        null=null_rows,
        feature_layers=(0, 1),
    )
    first = prompt.real.shape[1] - 1  # before it there may be padding
    outputs = pair.torch_model.layer_outputs(prompt.prefix(null), tokens, prompt.real)
    return [x[:, first:] for x in actual], [x[:, first:] for x in outputs]


@pytest.mark.parametrize("null", [NULL, ~NULL], ids=["one null row", "two null rows"])
def test_scores_agree(pair, null):
    (actual, _), outputs = both_outputs(pair, null)
    reference = pair.torch_model.output(pair.torch_model.norm(outputs[-1]))
    assert_close(actual, reference)
    assert reference.std() > 0.5


def test_feature_layers_agree(pair):
    (_, actual), outputs = both_outputs(pair, NULL)
    assert_close(actual, torch.cat(outputs, dim=-1))
