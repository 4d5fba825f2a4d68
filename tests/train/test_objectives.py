"""Masked diffusion and TiDAR: what is seen, what is learned, what is drafted."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import PPDConfig, TransformerConfig
from jaxspec.drafters.mask_drafter import Deer
from jaxspec.drafters.prompt_tokens import PPD
from jaxspec.drafters.riding_blocks import ppd, tidar
from jaxspec.errors import ConfigError
from jaxspec.models.masked_diffusion import MaskedDiffusion
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.tree import Tree
from jaxspec.train.objectives import (
    _shifted_table,
    block_loss,
    doubled_table,
    masked_loss,
    next_loss,
    sorted_loss,
    tidar_loss,
)
from tests.drafters.test_guesses import after
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=11, layers=2, width=16, heads=2, grid=4, classes=3, extra_tokens=3
)
MODEL = Transformer(CONFIG)
PARAMS = random_params(CONFIG)
LABELS = jnp.array([0, 2, 1])


def test_blocks_see_the_clean_past_and_themselves():
    table = doubled_table(1, 4, 2).astype(int)
    clean, hidden = table[:5], table[5:]
    np.testing.assert_array_equal(clean, np.pad(np.tri(5, dtype=int), ((0, 0), (0, 4))))
    np.testing.assert_array_equal(hidden[0], [1, 0, 0, 0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(hidden[3], [1, 1, 1, 0, 0, 0, 0, 1, 1])
    moved = _shifted_table(1, 4, 3, 1).astype(int)[5:]  # blocks of 1 and 3
    np.testing.assert_array_equal(moved[0], [1, 0, 0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(moved[3], [1, 1, 0, 0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    "kind", [pytest.param("tidar", marks=pytest.mark.slow), "prompt tokens"]
)
def test_riders_say_what_one_pass_over_the_tokens_says(kind):
    """After some rounds, block and shift and masks are those of a pass by hand."""
    tree = Tree.chain(3) if kind == "tidar" else named_tree("0,1,00")
    drafter = tidar(CONFIG, 4) if kind == "tidar" else None
    drafter = drafter or ppd(CONFIG, 3)
    target = make_target(MODEL, guided=False)
    _, state = after(3, target, PARAMS, drafter, None, tree, LABELS, make_sampling(3))
    riders = len(drafter.ids)
    for b in range(3):
        known = int(state.length[b]) - 1  # all but the root
        tokens = jnp.concatenate([state.tokens[b, :known], jnp.array(drafter.ids)])
        total = 1 + known + riders
        table = np.tri(total, dtype=bool)
        if drafter.whole:
            table[1 + known :, 1 + known :] = True
        logits, _ = MODEL.score(
            PARAMS, LABELS[b : b + 1], tokens[None], causal=jnp.asarray(table)
        )
        wanted = logits[0, total - drafter.max_depth :]
        np.testing.assert_allclose(state.drafter.logits[b], wanted, atol=1e-4)


def test_blocks_need_their_tokens_and_room():
    plain = replace(CONFIG, extra_tokens=0)
    with pytest.raises(ConfigError, match="0 extra tokens, 1 are needed"):
        tidar(plain, 4)
    with pytest.raises(ConfigError, match="has 3 extra tokens already"):
        PPD(PPDConfig(2), CONFIG)
    masks = Deer(make_target(MODEL, guided=False), 2, CONFIG.vocab_size)
    with pytest.raises(ConfigError, match="3 deep, the block drafts 2"):
        masks.check_tree(Tree.chain(3))
    with pytest.raises(ConfigError, match="4 deep, blocks of 4 queries draft 3"):
        tidar(CONFIG, 4).check_tree(Tree.chain(4))
    with pytest.raises(ConfigError, match="extra_tokens=1"):
        MaskedDiffusion(Transformer(plain))


def test_the_masked_bound_of_a_model_that_knows_nothing_is_log_v():
    """Each hidden token costs log V; `1 / t` makes up for those in sight."""
    blind = {**PARAMS, "head": jnp.zeros_like(PARAMS["head"])}
    codes = jax.random.randint(jax.random.key(0), (64, 16), 0, 11)
    labels, null = jnp.arange(64) % 3, jnp.zeros(64, bool)
    loss = jax.jit(
        lambda key: masked_loss(
            MaskedDiffusion(MODEL), blind, codes, labels, null, key, least=0.2
        )
    )
    losses = [float(loss(jax.random.key(i))) for i in range(20)]
    assert np.mean(losses) == pytest.approx(np.log(11), rel=0.02)


def test_masked_diffusion_sees_what_is_known_and_nothing_else():
    model = MaskedDiffusion(MODEL)
    tokens = jnp.array([[3, 11, 5, 11, 2, 1, 0, 11] + [11] * 8])
    base = model.score(PARAMS, LABELS[:1], tokens)
    assert base.shape == (1, 16, 11)
    changed = model.score(PARAMS, LABELS[:1], tokens.at[0, 6].set(4))
    assert (jnp.abs(changed - base).max(axis=-1) > 1e-5).all()  # both ways


@pytest.mark.parametrize("steps", [16, 5])
def test_masked_diffusion_generates_by_itself_row_by_row(steps):
    model, keys = MaskedDiffusion(MODEL), batch_keys(0, 3)
    sampling = make_sampling(3, temperature=[1.0, 0.0, 1.0], cfg_scale=1.5)
    run = jax.jit(
        lambda prompt, keys, sampling: model.sample(
            PARAMS, prompt, keys, sampling, 16, steps
        )
    )
    out = run(LABELS, keys, sampling)
    assert ((out >= 0) & (out < 11)).all()
    one = jax.tree.map(lambda x: x[2:], (LABELS, keys, sampling))
    np.testing.assert_array_equal(run(*one)[0], out[2])
    with pytest.raises(ConfigError, match="steps=17"):
        model.sample(PARAMS, LABELS, keys, sampling, 16, 17)


def test_tidar_learns_both_ways():
    """On one sequence: next tokens and hidden blocks, through one set of weights."""
    import optax

    codes = jax.random.randint(jax.random.key(1), (3, 16), 0, 11)
    null = jnp.zeros(3, bool)
    optimizer = optax.adam(1e-2)

    def loss(params, key):
        total, *parts = tidar_loss(MODEL, params, codes, LABELS, null, key, block=4)
        return total, jnp.stack(parts)

    def step(carry, i):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(2), i)
        (_, parts), slope = jax.value_and_grad(loss, has_aux=True)(params, key)
        change, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, change), state), parts

    start = PARAMS, optimizer.init(PARAMS)
    _, parts = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(120)))(start)
    assert (parts[-1] < 0.5 * parts[0]).all() and (parts[-1] < 1.2).all()


CODES = jax.random.randint(jax.random.key(8), (3, 16), 0, 11)
NULL = jnp.array([False, True, False])


def test_sorted_losses_are_those_of_the_model_cut_short():
    whole = next_loss(MODEL, PARAMS, CODES, LABELS, NULL, None)
    short = Transformer(replace(CONFIG, layers=1))
    first = next_loss(short, PARAMS, CODES, LABELS, NULL, None)
    found = sorted_loss(MODEL, PARAMS, CODES, LABELS, NULL, None, exits=(1,))
    np.testing.assert_allclose(found, (whole + first) / 2, rtol=1e-5)


@pytest.mark.parametrize("refine", [False, True])
def test_a_block_is_filled_from_the_tokens_before_it_alone(refine, monkeypatch):
    """Each block by a pass of its own: clean tokens causal, the block sees itself."""
    block, shift = 4, 3
    key = jax.random.key(2)
    _, time_key, mask_key = jax.random.split(key, 3)
    monkeypatch.setattr(jax.random, "randint", lambda *a, **k: jnp.array(shift))
    found = block_loss(
        MODEL, PARAMS, CODES, LABELS, NULL, key, block=block, refine=refine, growth=1.5
    )
    even = (jax.random.uniform(time_key) + jnp.arange(3) / 3) % 1.0
    t = 1e-3 + (1 - 1e-3) * even
    hidden = jax.random.uniform(mask_key, CODES.shape) < t[:, None]
    hidden = hidden | refine
    total, weights = 0.0, 0.0
    for begin, end in [(0, 3), (3, 7), (7, 11), (11, 15), (15, 16)]:
        seen = jnp.where(hidden, CONFIG.vocab_size, CODES)[:, begin:end]
        tokens = jnp.concatenate([CODES[:, :begin], seen], axis=1)
        table = np.tri(1 + end, dtype=bool)
        table[1 + begin :, 1 + begin :] = True
        logits, _ = MODEL.score(
            PARAMS, LABELS, tokens, null=NULL, causal=jnp.asarray(table)
        )
        law = jax.nn.log_softmax(logits[:, 1 + begin :])
        own = jnp.take_along_axis(law, CODES[:, begin:end, None], axis=-1)[..., 0]
        place = np.arange(begin, end) - (begin if begin else end - block)
        weight = 1.5**-place if refine else hidden[:, begin:end] / t[:, None]
        total -= float(jnp.sum(own * weight))
        weights += float(jnp.sum(jnp.broadcast_to(weight, own.shape)))
    wanted = total / (weights if refine else CODES.size)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
