# ruff: noqa: E402
"""T5 encoder against `transformers`, and captions as LlamaGen reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxspec.models.t5.model import TextEncoder, relative_position_buckets
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity
encode = jax.jit(TextEncoder.encode, static_argnums=0)
caption = jax.jit(TextEncoder.caption, static_argnums=0)
LENGTH = 150  # beyond the distance from which on all keys share a bucket


@pytest.fixture(scope="module")
def both():
    config = transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    oracle = randomized(transformers.T5EncoderModel(config), seed=0)
    checkpoint = converted(oracle.state_dict(), config=config.to_dict())
    return TextEncoder(checkpoint.config), checkpoint.params, oracle


def captions(lengths=(150, 9, 1)):
    torch.manual_seed(1)
    ids = torch.randint(1, 64, (len(lengths), LENGTH))
    valid = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    return torch.where(valid, ids, 0), valid


def test_features_agree(both):
    model, params, oracle = both
    ids, valid = captions()
    reference = oracle(input_ids=ids, attention_mask=valid.long()).last_hidden_state
    actual = encode(model, params, as_jax(ids), jnp.asarray(valid.numpy()))
    for row, real in enumerate(valid):
        assert_close(actual[row][np.asarray(real)], reference[row][real], atol=1e-4)


def test_captions_are_moved_to_the_right_and_padding_is_zero(both):
    model, params, oracle = both
    ids, valid = captions()
    reference = oracle(input_ids=ids, attention_mask=valid.long()).last_hidden_state
    actual = caption(model, params, as_jax(ids), jnp.asarray(valid.numpy()))
    for row, count in enumerate(valid.sum(1).tolist()):
        assert_close(
            actual.features[row, LENGTH - count :], reference[row, :count], 1e-4
        )
        assert not np.asarray(actual.features[row, : LENGTH - count]).any()
        assert np.asarray(actual.valid[row]).tolist() == [
            position >= LENGTH - count for position in range(LENGTH)
        ]


def test_buckets_of_distances_agree(both):
    _, _, oracle = both
    layer = oracle.encoder.block[0].layer[0].SelfAttention
    distance = torch.arange(400)[None, :] - torch.arange(400)[:, None]
    reference = layer._relative_position_bucket(distance, True, 32, 128)
    np.testing.assert_array_equal(
        relative_position_buckets(400, 32, 128), reference.numpy()
    )
