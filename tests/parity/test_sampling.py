# ruff: noqa: E402
"""Guidance and filters against those of LlamaGen, one setting per sequence."""

import jax
import jax.numpy as jnp
import pytest

from jaxspec.core.sampling import Sampling

torch = pytest.importorskip("torch")

from jaxspec.core.logits import apply_cfg, process_logits
from tests.parity import sampling_twin
from tests.parity.comparing import as_jax, assert_close

pytestmark = pytest.mark.parity

# temperature, top_k, top_p
SETTINGS = [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (1.0, 5, 1.0),
    (1.0, 1, 1.0),
    (1.0, 500, 1.0),
    (1.0, 0, 0.6),
    (1.0, 0, 1e-3),
    (1.6, 12, 0.8),
    (0.5, 12, 0.8),
]


def scores(rows, seed=0):
    torch.manual_seed(seed)
    return 2 * torch.randn(rows, 50)


def probabilities(x, settings):
    temperature, top_k, top_p = (jnp.array(s) for s in zip(*settings, strict=True))
    sampling = Sampling.create(
        len(settings), temperature=temperature, top_k=top_k, top_p=top_p
    )
    return jax.nn.softmax(process_logits(as_jax(x), sampling), axis=-1)


def test_filtered_distributions_agree():
    x = scores(len(SETTINGS))
    actual = probabilities(x, SETTINGS)
    for row, setting in enumerate(SETTINGS):
        reference = sampling_twin.filtered(x[row : row + 1], *setting)[0]
        assert_close(actual[row], reference, atol=1e-6)
        assert (actual[row] > 0).tolist() == (reference > 0).tolist()


def test_tokens_that_tie_with_the_kth_logit_are_kept():
    x = scores(1).round()
    reference = sampling_twin.filtered(x, 1.0, 7, 1.0)
    assert (reference > 0).sum() > 7
    assert_close(probabilities(x, [(1.0, 7, 1.0)]), reference, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.75, 7.5])
def test_guided_scores_agree(scale):
    conditional, unconditional = scores(4), scores(4, seed=1)
    both = as_jax(torch.cat([conditional, unconditional]))
    actual = apply_cfg(both, Sampling.create(4, cfg_scale=scale), jnp.zeros(4, int))
    reference = sampling_twin.guide(conditional, unconditional, scale)
    assert_close(actual, reference)
