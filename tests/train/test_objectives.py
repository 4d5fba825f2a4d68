"""Objectives of masked diffusion, TiDAR, DEER and early exits, and their drafts."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.inline_blocks.drafter import ppd_blocks, tidar
from jaxspec.drafters.masked.deer import Deer
from jaxspec.drafters.ppd.drafter import PPD, PPDConfig
from jaxspec.errors import ConfigError
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.trees.tree import Tree
from jaxspec.train.experiment import load_experiment
from jaxspec.train.objectives import (
    _shifted_mask,
    block_loss,
    doubled_mask,
    masked_loss,
    mixed_tokens,
    next_loss,
    sorted_loss,
    tidar_loss,
    token_losses,
)
from jaxspec.train.settings import PriorTrainingConfig
from tests.drafters.rounds import after_rounds
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=11, layers=2, width=16, heads=2, grid=4, classes=3, extra_tokens=3
)
MODEL = Transformer(CONFIG)
PARAMS = random_params(CONFIG)
LABELS = jnp.array([0, 2, 1])


def test_blocks_attend_to_the_clean_past_and_to_themselves():
    mask = doubled_mask(1, 4, 2).astype(int)
    clean, masked = mask[:5], mask[5:]
    np.testing.assert_array_equal(clean, np.pad(np.tri(5, dtype=int), ((0, 0), (0, 4))))
    np.testing.assert_array_equal(masked[0], [1, 0, 0, 0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(masked[3], [1, 1, 1, 0, 0, 0, 0, 1, 1])
    moved = _shifted_mask(1, 4, 3, 1).astype(int)[5:]  # blocks of 1 and 3
    np.testing.assert_array_equal(moved[0], [1, 0, 0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(moved[3], [1, 1, 0, 0, 0, 0, 1, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param("tidar", marks=pytest.mark.slow), "prompt tokens"]
)
def test_extra_queries_equal_one_pass_over_the_tokens(kind):
    """After some rounds, the logits equal those of a pass with an explicit mask."""
    tree = Tree.chain(3) if kind == "tidar" else Tree.named("0,1,00")
    drafter = tidar(CONFIG, 4) if kind == "tidar" else None
    drafter = drafter or ppd_blocks(CONFIG, 3)
    target = MODEL.as_target(cfg=False)
    _, state = after_rounds(
        3, target, PARAMS, drafter, None, tree, LABELS, Sampling.create(3)
    )
    extra = len(drafter.ids)
    for b in range(3):
        known = int(state.length[b]) - 1  # all but the root
        tokens = jnp.concatenate([state.tokens[b, :known], jnp.array(drafter.ids)])
        total = 1 + known + extra
        mask = np.tri(total, dtype=bool)
        if drafter.whole:
            mask[1 + known :, 1 + known :] = True
        logits, _ = MODEL.score(
            PARAMS, LABELS[b : b + 1], tokens[None], causal=jnp.asarray(mask)
        )
        expected = logits[0, total - drafter.max_depth :]
        np.testing.assert_allclose(state.drafter.logits[b], expected, atol=1e-4)


def test_blocks_need_extra_tokens_and_shallow_trees():
    plain = replace(CONFIG, extra_tokens=0)
    with pytest.raises(ConfigError, match="0 extra tokens, 1 are needed"):
        tidar(plain, 4)
    with pytest.raises(ConfigError, match="has 3 extra tokens already"):
        PPD(PPDConfig(2), CONFIG)
    masks = Deer(MODEL.as_target(cfg=False), 2, CONFIG.vocab_size)
    with pytest.raises(ConfigError, match="3 deep, the block drafts 2"):
        masks.check_tree(Tree.chain(3))
    with pytest.raises(ConfigError, match="4 deep, blocks of 4 queries draft 3"):
        tidar(CONFIG, 4).check_tree(Tree.chain(4))
    with pytest.raises(ConfigError, match="extra_tokens=1"):
        MaskedDiffusion(Transformer(plain))


def test_the_masked_bound_of_a_uniform_model_is_log_v():
    """A masked token costs log V, and `1 / t` accounts for those not masked."""
    uniform = {**PARAMS, "head": jnp.zeros_like(PARAMS["head"])}
    tokens = jax.random.randint(jax.random.key(0), (64, 16), 0, 11)
    labels, null = jnp.arange(64) % 3, jnp.zeros(64, bool)
    loss = jax.jit(
        lambda key: masked_loss(
            MaskedDiffusion(MODEL), uniform, tokens, labels, null, key, least=0.2
        )
    )
    losses = [float(loss(jax.random.key(i))) for i in range(20)]
    assert np.mean(losses) == pytest.approx(np.log(11), rel=0.02)


def test_masked_diffusion_attends_in_both_directions():
    model = MaskedDiffusion(MODEL)
    tokens = jnp.array([[3, 11, 5, 11, 2, 1, 0, 11] + [11] * 8])
    base = model.score(PARAMS, LABELS[:1], tokens)
    assert base.shape == (1, 16, 11)
    changed = model.score(PARAMS, LABELS[:1], tokens.at[0, 6].set(4))
    assert (jnp.abs(changed - base).max(axis=-1) > 1e-5).all()  # both ways


def test_tidar_learns_next_tokens_and_masked_blocks():
    """Both losses fall on one batch, with one set of weights."""
    import optax

    tokens = jax.random.randint(jax.random.key(1), (3, 16), 0, 11)
    null = jnp.zeros(3, bool)
    optimizer = optax.adam(1e-2)

    def loss(params, key):
        total, *parts = tidar_loss(MODEL, params, tokens, LABELS, null, key, block=4)
        return total, jnp.stack(parts)

    def step(carry, i):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(2), i)
        (_, parts), gradient = jax.value_and_grad(loss, has_aux=True)(params, key)
        change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, change), state), parts

    start = PARAMS, optimizer.init(PARAMS)
    _, parts = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(120)))(start)
    assert (parts[-1] < 0.5 * parts[0]).all() and (parts[-1] < 1.2).all()


TOKENS = jax.random.randint(jax.random.key(8), (3, 16), 0, 11)
NULL = jnp.array([False, True, False])


def test_sorted_loss_is_the_mean_over_truncated_models():
    whole = next_loss(MODEL, PARAMS, TOKENS, LABELS, NULL, None)
    short = Transformer(replace(CONFIG, layers=1))
    first = next_loss(short, PARAMS, TOKENS, LABELS, NULL, None)
    loss = sorted_loss(MODEL, PARAMS, TOKENS, LABELS, NULL, None, exits=(1,))
    np.testing.assert_allclose(loss, (whole + first) / 2, rtol=1e-5)


def test_noisy_contexts_have_tokens_of_another_sequence_of_the_same_places():
    """Shares are uniform from 0 to the largest one, apart for each sequence."""
    tokens = jnp.arange(512)[:, None] * 1000 + jnp.arange(64)
    mixed = mixed_tokens(tokens, 0.6, jax.random.key(0))
    other = jnp.roll(tokens, 1, axis=0)
    assert ((mixed == tokens) | (mixed == other)).all()
    shares = np.mean(np.asarray(mixed == other), axis=1)
    assert shares.min() < 0.02 and 0.55 < shares.max() < 0.85
    assert np.mean(shares) == pytest.approx(0.3, abs=0.02)


def test_tokens_predicted_from_noisy_contexts_are_clean():
    key = jax.random.key(1)
    noise_key, dropout_key = jax.random.split(key)
    noisy = mixed_tokens(TOKENS, 0.9, noise_key)
    read = {"null": NULL, "dropout_key": dropout_key}
    logits, _ = MODEL.score(PARAMS, LABELS, noisy[:, :-1], **read)
    expected = jnp.mean(token_losses(MODEL, logits, TOKENS))
    dropped = jnp.mean(token_losses(MODEL, logits, noisy))
    loss = next_loss(MODEL, PARAMS, TOKENS, LABELS, NULL, key, noise=0.9)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert abs(loss - dropped) > 1e-3
    assert (
        abs(loss - next_loss(MODEL, PARAMS, TOKENS, LABELS, NULL, dropout_key)) > 1e-3
    )


def test_noise_is_of_the_objective_next_alone():
    PriorTrainingConfig(steps=1, batch=1, token_noise=0.5)
    for changes in ({"token_noise": 1.5}, {"token_noise": 0.5, "objective": "masked"}):
        with pytest.raises(ConfigError, match="token_noise"):
            PriorTrainingConfig(steps=1, batch=1, **changes)


@pytest.mark.parametrize("preset", ["fruits64_scales_cpu", "fruits64_mar_cpu"])
def test_noise_is_refused_where_no_row_of_tokens_is_read(preset):
    file = Path(__file__).parents[2] / "configs" / f"{preset}.py"
    experiment = load_experiment(file)
    training = replace(experiment.train_prior, token_noise=0.5)
    with pytest.raises(ConfigError, match="token_noise"):
        replace(experiment, train_prior=training)


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("refine", [False, True])
def test_a_block_is_predicted_from_the_tokens_before_it(refine, monkeypatch):
    """The loss equals that of one pass per block, with an explicit mask."""
    block, shift = 4, 3
    key = jax.random.key(2)
    _, time_key, mask_key = jax.random.split(key, 3)
    monkeypatch.setattr(jax.random, "randint", lambda *a, **k: jnp.array(shift))
    loss = block_loss(
        MODEL, PARAMS, TOKENS, LABELS, NULL, key, block=block, refine=refine, growth=1.5
    )
    even = (jax.random.uniform(time_key) + jnp.arange(3) / 3) % 1.0
    t = 1e-3 + (1 - 1e-3) * even
    masked = jax.random.uniform(mask_key, TOKENS.shape) < t[:, None]
    masked = masked | refine
    total, weights = 0.0, 0.0
    for begin, end in [(0, 3), (3, 7), (7, 11), (11, 15), (15, 16)]:
        block_tokens = jnp.where(masked, CONFIG.vocab_size, TOKENS)[:, begin:end]
        tokens = jnp.concatenate([TOKENS[:, :begin], block_tokens], axis=1)
        mask = np.tri(1 + end, dtype=bool)
        mask[1 + begin :, 1 + begin :] = True
        logits, _ = MODEL.score(
            PARAMS, LABELS, tokens, null=NULL, causal=jnp.asarray(mask)
        )
        log_p = jax.nn.log_softmax(logits[:, 1 + begin :])
        taken = jnp.take_along_axis(log_p, TOKENS[:, begin:end, None], axis=-1)[..., 0]
        index = np.arange(begin, end) - (begin if begin else end - block)
        weight = 1.5**-index if refine else masked[:, begin:end] / t[:, None]
        total -= float(jnp.sum(taken * weight))
        weights += float(jnp.sum(jnp.broadcast_to(weight, taken.shape)))
    expected = total / (weights if refine else TOKENS.size)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
