# ruff: noqa: E402
"""Network of the block drafter against the PyTorch DFlash."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")

from jaxspec.core.kv_cache import init_cache, write
from jaxspec.drafters.dflash.drafter import block_mask
from tests.parity.comparing import as_jax, assert_close
from tests.parity.dflash_pairs import BLOCK, ROWS, WIDTH, make_pair

pytestmark = pytest.mark.parity

CONTEXT = 11


@pytest.fixture(scope="module", params=[False, True], ids=["bidirectional", "causal"])
def pair(request):
    return make_pair(causal=request.param)


def features(pair, seed=1):
    torch.manual_seed(seed)
    return torch.randn(ROWS, CONTEXT, WIDTH * len(pair.drafter.config.feature_layers))


def anchors(pair):
    torch.manual_seed(2)
    return torch.randint(len(pair.embedding), (ROWS,))


def reference(pair, context):
    """Hidden states of a block after the whole context."""
    block = pair.block(anchors(pair))
    turns = pair.turns(torch.arange(CONTEXT + BLOCK).expand(ROWS, -1))
    return pair.torch_model(context, block, turns, pair.drafter.config.causal)


def actual(pair, chunks):
    """The same in JAX, with the context written to a cache chunk by chunk."""
    drafter, c = pair.drafter, pair.drafter.config
    network = drafter.network(pair.params["own"])
    cache = init_cache(
        c.layers, ROWS, c.num_kv_heads, CONTEXT + BLOCK, c.head_size, jnp.float32
    )
    layers, lengths = cache.layers, cache.lengths
    for chunk in chunks:
        positions = lengths[:, None] + jnp.arange(chunk.shape[1])
        new = network.context(chunk, drafter.angles(positions))
        layers = [joined(*both, lengths) for both in zip(layers, new, strict=True)]
        lengths = lengths + chunk.shape[1]
    cache = type(cache)(tuple(layers), lengths, cache.visible)
    return network.block(
        network.block_input(pair.params["embedding"][as_jax(anchors(pair))]),
        drafter.angles(lengths[:, None] + jnp.arange(BLOCK)),
        block_mask(cache, BLOCK, c),
        [lambda new, past=past: joined(past, new, lengths) for past in layers],
    )


def joined(past, new, lengths):
    """Keys and values written after the committed ones."""
    return tuple(write(old, x, lengths) for old, x in zip(past, new, strict=True))


@pytest.mark.parametrize("chunks", [[CONTEXT], [5, 1, 3, 2]], ids=["whole", "uneven"])
def test_hidden_states_agree(pair, chunks):
    context = features(pair)
    split = [as_jax(x) for x in context.split(chunks, dim=1)]
    assert_close(jax.jit(partial(actual, pair))(split), reference(pair, context))


def test_the_markov_bias_agrees(pair):
    torch.manual_seed(3)
    tokens = torch.randint(len(pair.embedding), (ROWS, BLOCK))
    bias = pair.drafter.network(pair.params["own"]).markov(as_jax(tokens))
    assert_close(bias, pair.torch_model.markov_head(tokens))
