"""Training of a tokenizer's decoder alone: images keep their tokens."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import Checkpoint, model_of
from jaxspec.errors import ConfigError
from jaxspec.train.multi_scale_tokenizer import multi_scale_job
from jaxspec.train.start import deepened
from jaxspec.train.tokenizer import averaged_params, tokenizer_job
from tests.train import tiny, tiny_scales

KINDS = {
    "grid": (tiny, tokenizer_job, "tokenizer"),
    "scales": (tiny_scales, multi_scale_job, "multi_scale_tokenizer"),
}


class Images:
    """Random images as a source."""

    captions = ()

    def __len__(self):
        return 16

    def take(self, indices):
        rng = np.random.default_rng(0)
        return rng.integers(0, 255, (16, 32, 32, 3), np.uint8)[np.asarray(indices)]


def trained(kind, alone, steps=3):
    """Parameters before and after some steps."""
    module, make_job, name = KINDS[kind]
    experiment = module.get_config()
    settings = replace(experiment.train_tokenizer, decoder_alone=alone)
    experiment = replace(experiment, train_tokenizer=settings)
    model = model_of(experiment.tokenizer)
    start = Checkpoint(name, experiment.tokenizer, model.init(jax.random.key(5)))
    job = make_job(experiment, Images(), Images(), start)
    step, state = jax.jit(job.training.step_fn), job.state
    for i in range(steps):
        state, _ = step(state, jnp.int32(i), job.training.batch_fn(i))
    after = averaged_params(state) if kind == "grid" else state["average"]
    return model, start.params, after


@pytest.mark.variants(1)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_stay_and_images_change(kind):
    model, before, after = trained(kind, alone=True)
    images = jnp.float32(Images().take(np.arange(8))) / 127.5 - 1
    tokens = model.encode(before, images)
    np.testing.assert_array_equal(model.encode(after, images), tokens)
    np.testing.assert_array_equal(after["codebook"], before["codebook"])
    moved = model.decode(after, tokens) - model.decode(before, tokens)
    assert abs(moved).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_otherwise_the_encoder_is_trained(kind):
    _, before, after = trained(kind, alone=False)
    change = jax.tree.map(
        lambda a, b: abs(a - b).max(), before["encoder"], after["encoder"]
    )
    assert max(jax.tree.leaves(change)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_start_there_are_no_codes_to_keep(kind):
    module, make_job, _ = KINDS[kind]
    experiment = module.get_config()
    settings = replace(experiment.train_tokenizer, decoder_alone=True)
    experiment = replace(experiment, train_tokenizer=settings)
    with pytest.raises(ConfigError, match="decoder_alone needs a trained tokenizer"):
        make_job(experiment, Images(), Images())


def test_a_decoder_gets_more_blocks_which_change_nothing_at_first():
    """Control: blocks whose last layers are not zeros."""
    experiment = tiny.get_config()
    few, many = (replace(experiment.tokenizer, decoder_blocks=n) for n in (1, 3))
    start = Checkpoint("tokenizer", few, model_of(few).init(jax.random.key(5)))
    random = model_of(many).init(jax.random.key(6))
    grown = deepened(start, many, random)
    assert grown.config == many
    images = jnp.float32(Images().take(np.arange(4))) / 127.5 - 1
    tokens = model_of(few).encode(start.params, images)
    np.testing.assert_array_equal(model_of(many).encode(grown.params, images), tokens)
    before = model_of(few).decode(start.params, tokens)
    after = model_of(many).decode(grown.params, tokens)
    np.testing.assert_allclose(after, before, atol=1e-5)
    kept = {**random["decoder"], **start.params["decoder"]}
    other = {**grown.params, "decoder": kept}
    other["decoder"]["conv_blocks_0"] = random["decoder"]["conv_blocks_0"]
    assert abs(model_of(many).decode(other, tokens) - before).max() > 1e-3
    settings = replace(experiment.train_tokenizer, decoder_alone=True)
    deeper = replace(experiment, tokenizer=many, train_tokenizer=settings)
    assert tokenizer_job(deeper, Images(), Images(), start).state
    for other in (replace(many, code_dim=8), few):
        assert deepened(start, other, random) is start
    with pytest.raises(ConfigError, match="the tokenizer to start from has"):
        deeper = replace(deeper, train_tokenizer=experiment.train_tokenizer)
        tokenizer_job(deeper, Images(), Images(), start)
