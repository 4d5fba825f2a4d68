# ruff: noqa: E402
"""Scores of whole streams against the LlamaGen twin."""

import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")

from tests.parity.comparing import as_jax, assert_close
from tests.parity.llamagen_pairs import make_pair, make_prompt, make_tokens, score

pytestmark = pytest.mark.parity

# A head size of 12 gives each axis of the grid an odd number of pairs, as in 3B.
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


def ours_and_theirs(pair, null):
    """Scores and tapped layers of ours; each layer's output of the twin."""
    prompt, tokens = make_prompt(pair), make_tokens()
    null_rows = jnp.asarray(null.numpy())
    ours = score(
        pair.model,
        pair.params,
        prompt.ours,
        as_jax(tokens),
        null=null_rows,
        feature_layers=(0, 1),
    )
    first = prompt.real.shape[1] - 1  # before it there may be padding
    streams = pair.twin.streams(prompt.prefix(null), tokens, prompt.real)
    return [x[:, first:] for x in ours], [x[:, first:] for x in streams]


@pytest.mark.parametrize("null", [NULL, ~NULL], ids=["one null row", "two null rows"])
def test_scores_agree(pair, null):
    (ours, _), streams = ours_and_theirs(pair, null)
    theirs = pair.twin.output(pair.twin.norm(streams[-1]))
    assert_close(ours, theirs)
    assert theirs.std() > 0.5


def test_tapped_layers_agree(pair):
    (_, ours), streams = ours_and_theirs(pair, NULL)
    assert_close(ours, torch.cat(streams, dim=-1))
