"""Training of decoders against swaps between similar codes (RobustTok)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxspec.errors import ConfigError
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.tokenizers.residual.model import ResidualTokenizer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.swaps import swapped_codes
from jaxspec.train.tokenizer import averaged_params, init_state, make_step
from tests.train import tiny, tiny_residual
from tests.train.halves import batch_of, write_images

EXPERIMENT = tiny.get_config()
SETTINGS = replace(
    EXPERIMENT.train_tokenizer,
    swapped_images=0.4,
    swapped_tokens=0.5,
    swap_neighbors=3,
)


def test_a_share_of_the_codes_of_a_share_of_the_images_is_swapped():
    """Each by one of its nearest others, by the table of the verifiers."""
    book = jax.random.normal(jax.random.key(0), (40, 4))
    codes = jax.random.randint(jax.random.key(1), (5, 50, 20), 0, 40)
    swap = jax.jit(swapped_codes, static_argnums=3)
    found = np.asarray(swap(jax.random.key(2), book, codes, SETTINGS))
    assert_array_equal(found[2:], codes[2:])
    before, after = np.asarray(codes[:2]).ravel(), found[:2].ravel()
    changed = before != after
    assert abs(changed.mean() - 0.5) < 4 * (0.25 / 2000) ** 0.5
    nearest = np.asarray(neighbor_table(book, 3).ids)[:, :3]
    ranks = nearest[before[changed]] == after[changed, None]
    assert ranks.any(axis=1).all()
    assert np.abs(ranks.mean(axis=0) - 1 / 3).max() < 4 * (0.25 / 1000) ** 0.5


@pytest.mark.slow
def test_a_decoder_trained_so_loses_less_by_swaps(tmp_path):
    """The same steps without swaps are the control; their images without are better."""
    images = batch_of(write_images(tmp_path / "halves"))
    tokenizer = Tokenizer(EXPERIMENT.tokenizer)

    def losses(swapped):
        config = replace(SETTINGS, swapped_images=swapped, learning_rate=3e-3)
        config = replace(config, swapped_tokens=1.0, steps=150)
        state = init_state(tokenizer, config)
        step = jax.jit(make_step(tokenizer, config))
        for i in range(150):
            state, _ = step(state, jnp.int32(i), images)
        params = averaged_params(state)
        x = jnp.float32(images) / 127.5 - 1
        codes = tokenizer.encode(params, x)
        every = replace(SETTINGS, swapped_images=1.0, swapped_tokens=1.0)
        other = swapped_codes(jax.random.key(7), params["codebook"], codes, every)
        plain, after = (tokenizer.decode(params, c) for c in (codes, other))
        return jnp.mean((plain - x) ** 2), jnp.mean((after - x) ** 2)

    (plain, hurt), (robust_plain, robust_hurt) = losses(0.0), losses(1.0)
    assert robust_hurt < 0.85 * hurt
    assert plain < robust_plain


def test_impossible_swaps_are_refused():
    with pytest.raises(ConfigError, match="swapped_images=1.5"):
        replace(SETTINGS, swapped_images=1.5)
    with pytest.raises(ConfigError, match="15 others"):
        make_step(Tokenizer(EXPERIMENT.tokenizer), replace(SETTINGS, swap_neighbors=16))
    residual = ResidualTokenizer(tiny_residual.get_config().tokenizer)
    with pytest.raises(ConfigError, match="one token a cell"):
        make_step(residual, SETTINGS)
