"""What models of several kinds are trained for: functions of parameters and data.

All take codes `[B, T]` and labels `[B]`, null conditions `[B]` and a key, which is
consumed, and return a mean in nats a token (TiDAR's with its two parts). The mask of a
model is its first extra token. A table says who sees whom among the condition and what
follows it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.drafters.shared import shared_target_params, target_logits
from jaxspec.models.masked_diffusion import MaskedDiffusion
from jaxspec.models.transformer import Transformer
from jaxspec.typing import Array, Bool, Float, Int, Params


def next_loss(
    model: Transformer,
    params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    null: Bool[Array, "B"],
    key: Array,
) -> Float[Array, ""]:
    """Each token given those before it; `key` is for dropout."""
    logits, _ = model.score(params, labels, codes[:, :-1], null=null, dropout_key=key)
    return jnp.mean(token_losses(model, logits, codes))


def token_losses(
    model: Transformer, logits: Float[Array, "B U V"], codes: Int[Array, "B T"]
) -> Float[Array, "B N"]:
    """Negative log-likelihood in nats of each token that something stands before.

    Args:
      model: causal.
      logits: of the condition and all tokens but the last.
      codes: all tokens. Without a condition the first one is not predicted.
    """
    prefix = model.config.prefix_length
    return _cross(logits[:, max(prefix - 1, 0) :], codes if prefix else codes[:, 1:])


def sorted_loss(
    model: Transformer,
    params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    null: Bool[Array, "B"],
    key: Array,
    *,
    exits: tuple[int, ...],
) -> Float[Array, ""]:
    """Next tokens by the whole model and by its first layers, as one mean.

    All share the final norm and the head: a model that can be left early (S2D, arXiv
    2407.01955; the losses of LayerSkip, arXiv 2404.16710, without its layer dropout).

    Args:
      model: causal.
      params: its parameters.
      codes: tokens.
      labels: conditions.
      null: rows without condition.
      key: for dropout.
      exits: numbers of layers.
    """
    feature_layers = tuple(n - 1 for n in exits)
    logits, features = model.score(
        params,
        labels,
        codes[:, :-1],
        null=null,
        feature_layers=feature_layers,
        dropout_key=key,
    )
    losses = [jnp.mean(token_losses(model, logits, codes))]
    shared = shared_target_params(model.config, params, norm=True)
    for h in jnp.split(features, len(exits), axis=-1):
        logits = target_logits(model.config, shared, h)
        losses.append(jnp.mean(token_losses(model, logits, codes)))
    return jnp.mean(jnp.stack(losses))


def block_loss(
    model: Transformer,
    params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    null: Bool[Array, "B"],
    key: Array,
    *,
    block: int,
    refine: bool,
    growth: float = 1.01,
    least: float = 1e-3,
) -> Float[Array, ""]:
    """DEER's two stages (arXiv 2512.15176), for all prefixes in one pass.

    Clean tokens are causal, and blocks behind each prefix see it and themselves, so a
    cache of clean tokens is exact. Where blocks begin is drawn anew each time.

    Args:
      model: with an extra token for the mask.
      params: its parameters.
      codes: tokens.
      labels: conditions.
      null: rows without condition.
      key: shifts the blocks and hides tokens; consumed.
      block: rows of a block.
      refine: stage two: all of a block is hidden, and a token weighs the more the
        nearer it is to the prefix. Else stage one: a share `t`, weighing `1 / t`.
      growth: of the weight from a place to the one before; 1.02 is noisy, 1.05
        diverges, says the paper.
      least: share that is hidden.
    """
    shift_key, time_key, mask_key = jax.random.split(key, 3)
    length = codes.shape[1]
    shift = jax.random.randint(shift_key, (), 0, block, jnp.int32)
    hidden, weight = (
        jnp.ones(codes.shape, bool),
        growth ** -_place(length, block, shift).astype(jnp.float32),
    )
    weight = jnp.broadcast_to(weight, codes.shape)
    if not refine:
        hidden, t = _hide(time_key, mask_key, codes.shape, least)
        weight = hidden.astype(t.dtype) / t
    tokens = jnp.where(hidden, model.config.vocab_size, codes)
    logits = _doubled_scores(model, params, codes, tokens, labels, null, block, shift)
    filled = _cross(logits[:, model.config.prefix_length + length :], codes)
    return jnp.sum(filled * weight) / (
        jnp.sum(weight) if refine else jnp.float32(codes.size)
    )


def masked_loss(
    model: MaskedDiffusion,
    params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    null: Bool[Array, "B"],
    key: Array,
    *,
    least: float = 1e-3,
) -> Float[Array, ""]:
    """MDLM's bound (arXiv 2406.07524): `1 / t` times the loss of the hidden tokens.

    Each sequence has a share `t` of hidden tokens between `least` and 1, drawn
    antithetically over the batch.
    """
    time_key, mask_key = jax.random.split(key)
    hidden, t = _hide(time_key, mask_key, codes.shape, least)
    tokens = jnp.where(hidden, model.mask_token, codes)
    logits = model.score(params, labels, tokens, null=null)
    losses = jnp.where(hidden, _cross(logits, codes), 0.0)
    return jnp.mean(losses / t)


def doubled_table(prefix: int, length: int, block: int) -> Bool[np.ndarray, "U U"]:
    """Clean tokens, then the same places hidden, in blocks: `U = prefix + 2 length`.

    Clean tokens are causal. A hidden one sees the clean tokens before its block, and
    all of its block. Nobody else sees hidden ones. (BD3-LM, arXiv 2503.09573; TiDAR,
    arXiv 2511.08923.)
    """
    clean = prefix + length
    table = np.zeros((clean + length, clean + length), bool)
    table[:clean, :clean] = np.tri(clean, dtype=bool)
    place = np.arange(length)
    begin = prefix + place // block * block  # first clean position of each block
    table[clean:, :clean] = np.arange(clean) < begin[:, None]
    table[clean:, clean:] = place[:, None] // block == place // block
    return table


def tidar_loss(
    model: Transformer,
    params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    null: Bool[Array, "B"],
    key: Array,
    *,
    block: int,
    weight: float = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """TiDAR's joint loss (arXiv 2511.08923): next tokens, and whole hidden blocks.

    Clean rows predict the next token, hidden rows their own. Blocks begin anywhere: a
    draft starts behind whatever token was accepted last, so their grid is shifted at
    random.

    Args:
      model: causal, with an extra token for the mask.
      params: its parameters.
      codes: tokens.
      labels: conditions.
      null: rows without condition.
      key: shifts the blocks; consumed.
      block: rows of a block.
      weight: of the autoregressive part.

    Returns:
      The loss, and its two parts: autoregressive and hidden.
    """
    shift = jax.random.randint(key, (), 0, block, jnp.int32)
    hidden = jnp.full(codes.shape, model.config.vocab_size, codes.dtype)
    logits = _doubled_scores(model, params, codes, hidden, labels, null, block, shift)
    total = model.config.prefix_length + codes.shape[1]
    following = jnp.mean(token_losses(model, logits[:, : total - 1], codes))
    filled = jnp.mean(_cross(logits[:, total:], codes))
    return (weight * following + filled) / (1.0 + weight), following, filled


_cross = optax.softmax_cross_entropy_with_integer_labels


def _hide(
    time_key: Array, mask_key: Array, shape: tuple[int, ...], least: float
) -> tuple[Bool[Array, "B T"], Float[Array, "B 1"]]:
    """Which tokens are hidden, and the share of each sequence, drawn antithetically."""
    begin = jax.random.uniform(time_key, dtype=jnp.float32)
    even = (begin + jnp.arange(shape[0], dtype=jnp.float32) / shape[0]) % 1.0
    t = (least + (1.0 - least) * even)[:, None]
    return jax.random.uniform(mask_key, shape, jnp.float32) < t, t


def _doubled_scores(model, params, codes, seconds, labels, null, block, shift):
    """Logits of clean tokens, then of the same places as `seconds`, in blocks."""
    prefix, length = model.config.prefix_length, codes.shape[1]
    tables = jnp.stack(
        [jnp.asarray(_shifted_table(prefix, length, block, s)) for s in range(block)]
    )
    order = np.arange(prefix + length)
    positions = jnp.asarray(np.concatenate([order, order[prefix:]]))
    return model.score(
        params,
        labels,
        jnp.concatenate([codes, seconds], axis=1),
        null=null,
        causal=tables[shift],
        positions=positions,
    )[0]


def _place(length: int, block: int, shift: Array) -> Int[Array, "T"]:
    """Place of each token in its block."""
    return (jnp.arange(length) - shift) % block


def _shifted_table(prefix: int, length: int, block: int, shift: int) -> np.ndarray:
    """`doubled_table` whose first block has `shift` places, if that is not 0."""
    extra = (block - shift) % block
    table = doubled_table(prefix, length + extra, block)
    clean = prefix + length + extra
    kept = np.r_[0:prefix, prefix + extra : clean, clean + extra : table.shape[0]]
    return table[np.ix_(kept, kept)]
