"""Training objectives of models over tokens.

`Objective` documents the arguments that all of them share, after the model. The mask
token of a model is its first extra token.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.drafters.common.target_params import shared_target_params, target_logits
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree


class Objective(Protocol):
    """Mean loss of a batch, with the model and its settings bound."""

    def __call__(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        prompts: PyTree,
        null: Bool[Array, "B"],
        key: Array,
    ) -> Float[Array, ""]:
        """Mean loss in nats per token.

        Args:
          params: parameters of the model.
          tokens: int32 [B, T], sequences of the data.
          prompts: conditions of the sequences, as the model takes them.
          null: bool [B], True for sequences read without their condition.
          key: random key for dropout, masks and the shift of blocks; consumed.
        """
        ...


def next_loss(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    null: Bool[Array, "B"],
    key: Array,
    *,
    noise: float = 0.0,
) -> Float[Array, ""]:
    """Cross-entropy of each token given those before it.

    Args:
      noise: largest share of the tokens read that are those of another sequence; see
        `mixed_tokens`.
    """
    read = tokens
    if noise:
        noise_key, key = jax.random.split(key)
        read = mixed_tokens(tokens, noise, noise_key)
    logits, _ = model.score(params, prompts, read[:, :-1], null=null, dropout_key=key)
    return jnp.mean(token_losses(model, logits, tokens))


def mixed_tokens(
    tokens: Int[Array, "B T"], most: float, key: Array
) -> Int[Array, "B T"]:
    """Sequences of which random tokens are replaced by those of the one before.

    A model that reads them predicts more from its condition, and reads errors as it
    does in generation (ours; Infinity, arXiv 2412.04431, flips bits for the second
    reason).

    Args:
      tokens: int32 [B, T].
      most: upper end of the shares, which are uniform in [0, most], one a sequence.
      key: random key; consumed.
    """
    share_key, place_key = jax.random.split(key)
    share = most * jax.random.uniform(share_key, (len(tokens), 1), jnp.float32)
    replaced = jax.random.bernoulli(place_key, share, tokens.shape)
    return jnp.where(replaced, jnp.roll(tokens, 1, axis=0), tokens)


def token_losses(
    model: Transformer, logits: Float[Array, "B Y V"], tokens: Int[Array, "B T"]
) -> Float[Array, "B M"]:
    """Negative log-likelihood in nats of each predicted token.

    `M` is `T`, or `T - 1` without a condition, where nothing predicts the first token.

    Args:
      model: causal transformer.
      logits: float32 [B, Y, V] with `Y = P + T - 1`, outputs at the condition and at
        all tokens but the last.
      tokens: int32 [B, T], all tokens.
    """
    prefix = model.config.prefix_length
    return _cross_entropy(
        logits[:, max(prefix - 1, 0) :], tokens if prefix else tokens[:, 1:]
    )


def sorted_loss(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    null: Bool[Array, "B"],
    key: Array,
    *,
    exits: tuple[int, ...],
) -> Float[Array, ""]:
    """Next-token loss averaged over the whole model and its first `exits` layers.

    All exits share the final norm and the head (S2D, arXiv 2407.01955; the losses of
    LayerSkip, arXiv 2404.16710, without its layer dropout).

    Args:
      exits: numbers of layers after which the model may exit.
    """
    feature_layers = tuple(n - 1 for n in exits)
    logits, features = model.score(
        params,
        prompts,
        tokens[:, :-1],
        null=null,
        feature_layers=feature_layers,
        dropout_key=key,
    )
    losses = [jnp.mean(token_losses(model, logits, tokens))]
    shared = shared_target_params(model.config, params, norm=True)
    for h in jnp.split(features, len(exits), axis=-1):
        logits = target_logits(model.config, shared, h)
        losses.append(jnp.mean(token_losses(model, logits, tokens)))
    return jnp.mean(jnp.stack(losses))


def any_order_loss(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    null: Bool[Array, "B"],
    key: Array,
    *,
    share: float,
) -> Float[Array, ""]:
    """Next-token loss of sequences in random orders (RAR, arXiv 2411.00776).

    Args:
      share: share of the sequences in a random order of their own; the others are in
        the order of the model.
    """
    order_key, share_key, dropout_key = jax.random.split(key, 3)
    prefix, shape = model.config.prefix_length, tokens.shape
    is_random = jax.random.bernoulli(share_key, jnp.float32(share), (shape[0], 1))
    shuffled = jnp.argsort(jax.random.uniform(order_key, shape, jnp.float32))
    order = jnp.where(is_random, shuffled, jnp.arange(shape[1]))
    tokens = jnp.take_along_axis(tokens, order, axis=1)
    condition = jnp.broadcast_to(jnp.arange(prefix), (shape[0], prefix))
    positions = jnp.concatenate([condition, prefix + order], axis=1)
    logits, _ = model.score(
        params,
        prompts,
        tokens[:, :-1],
        null=null,
        dropout_key=dropout_key,
        positions=positions[:, :-1],
        following=positions[:, 1:],
    )
    return jnp.mean(token_losses(model, logits, tokens))


def block_loss(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    null: Bool[Array, "B"],
    key: Array,
    *,
    block: int,
    refine: bool,
    growth: float = 1.01,
    least: float = 1e-3,
) -> Float[Array, ""]:
    """Loss of DEER's two stages (arXiv 2512.15176), for all prefixes in one pass.

    Clean tokens attend causally. A block attends to the clean tokens before it and to
    itself, so a cache of clean tokens is exact. The first block has a random length.

    Args:
      block: tokens of a block.
      refine: True for stage two, in which whole blocks are masked and tokens nearer to
        the prefix weigh more; False for stage one, in which a share `t` of the tokens
        is masked, with weight `1 / t`.
      growth: ratio of the weights of neighboring tokens in stage two. In the paper 1.02
        is noisy and 1.05 diverges.
      least: smallest share `t` of masked tokens.
    """
    shift_key, time_key, mask_key = jax.random.split(key, 3)
    length = tokens.shape[1]
    shift = jax.random.randint(shift_key, (), 0, block, jnp.int32)
    if refine:
        is_masked = jnp.ones(tokens.shape, bool)
        index = _index_in_block(length, block, shift).astype(jnp.float32)
        weight = jnp.broadcast_to(growth**-index, tokens.shape)
    else:
        is_masked, t = _mask_tokens(time_key, mask_key, tokens.shape, least)
        weight = is_masked.astype(t.dtype) / t
    masked = jnp.where(is_masked, model.config.vocab_size, tokens)
    logits = _doubled_logits(model, params, tokens, masked, prompts, null, block, shift)
    denoising = _cross_entropy(logits[:, model.config.prefix_length + length :], tokens)
    total = jnp.sum(weight) if refine else jnp.float32(tokens.size)
    return jnp.sum(denoising * weight) / total


def masked_loss(
    model: MaskedDiffusion,
    params: Params,
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    null: Bool[Array, "B"],
    key: Array,
    *,
    least: float = 1e-3,
    cosine: bool = False,
) -> Float[Array, ""]:
    """Loss of masked tokens: MDLM's bound, or MaskGIT's mean.

    In each sequence a share `t` of the tokens is masked. Of MDLM (arXiv 2406.07524) the
    shares are uniform in [`least`, 1] and stratified over the batch, and the loss is
    weighted with `1 / t`. With `cosine` they are `cos(pi u / 2)` of uniform numbers
    `u`, as the steps of a generation have them, and the loss is the mean of the masked
    tokens (MaskGIT, arXiv 2202.04200, without its label smoothing).
    """
    time_key, mask_key = jax.random.split(key)
    is_masked, t = _mask_tokens(time_key, mask_key, tokens.shape, least, cosine)
    masked = jnp.where(is_masked, model.mask_token, tokens)
    logits = model.score(params, prompts, masked, null=null)
    losses = jnp.where(is_masked, _cross_entropy(logits, tokens), 0.0)
    if cosine:
        return jnp.sum(losses) / jnp.maximum(
            jnp.sum(is_masked.astype(jnp.float32)), 1.0
        )
    return jnp.mean(losses / t)


def doubled_mask(prefix: int, length: int, block: int) -> Bool[np.ndarray, "M M"]:
    """Attention mask over clean tokens followed by masked copies of them, in blocks.

    `M = prefix + 2 length`. Clean tokens attend causally. Masked ones attend to the
    clean tokens before their block and to all of their block, and no other token
    attends to them (BD3-LM, arXiv 2503.09573; TiDAR, arXiv 2511.08923).

    Args:
      prefix: positions of the condition.
      length: number of clean tokens.
      block: tokens of a block.
    """
    clean = prefix + length
    mask = np.zeros((clean + length, clean + length), bool)
    mask[:clean, :clean] = np.tri(clean, dtype=bool)
    index = np.arange(length)
    first = prefix + index // block * block  # first clean position of each block
    mask[clean:, :clean] = np.arange(clean) < first[:, None]
    mask[clean:, clean:] = index[:, None] // block == index // block
    return mask


def tidar_loss(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    null: Bool[Array, "B"],
    key: Array,
    *,
    block: int,
    weight: float = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """TiDAR's joint loss (arXiv 2511.08923): next tokens, and wholly masked blocks.

    Clean queries predict the next token, masked queries their own token. Blocks are
    shifted at random, since a draft may start after any token.

    Args:
      block: tokens of a block.
      weight: weight of the autoregressive loss; that of the masked tokens is 1.

    Returns:
      The weighted mean, the autoregressive loss and the loss of the masked tokens.
    """
    shift = jax.random.randint(key, (), 0, block, jnp.int32)
    masked = jnp.full(tokens.shape, model.config.vocab_size, tokens.dtype)
    logits = _doubled_logits(model, params, tokens, masked, prompts, null, block, shift)
    total = model.config.prefix_length + tokens.shape[1]
    autoregressive = jnp.mean(token_losses(model, logits[:, : total - 1], tokens))
    denoising = jnp.mean(_cross_entropy(logits[:, total:], tokens))
    return (
        (weight * autoregressive + denoising) / (1.0 + weight),
        autoregressive,
        denoising,
    )


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def _mask_tokens(
    time_key: Array,
    mask_key: Array,
    shape: tuple[int, ...],
    least: float,
    cosine: bool = False,
) -> tuple[Bool[Array, "B T"], Float[Array, "B 1"]]:
    """Samples the masked tokens and their share in each sequence.

    The shares are stratified: evenly spaced over the batch, with one random offset; or
    cosines of such numbers.
    """
    offset = jax.random.uniform(time_key, dtype=jnp.float32)
    even = (offset + jnp.arange(shape[0], dtype=jnp.float32) / shape[0]) % 1.0
    share = jnp.cos(jnp.pi / 2 * even) if cosine else even
    t = (least + (1.0 - least) * share)[:, None]
    return jax.random.uniform(mask_key, shape, jnp.float32) < t, t


def _doubled_logits(model, params, tokens, masked, prompts, null, block, shift):
    """Logits of clean tokens, then of `masked` tokens at the same positions."""
    prefix, length = model.config.prefix_length, tokens.shape[1]
    masks = jnp.stack(
        [jnp.asarray(_shifted_mask(prefix, length, block, s)) for s in range(block)]
    )
    order = np.arange(prefix + length)
    positions = jnp.asarray(np.concatenate([order, order[prefix:]]))
    return model.score(
        params,
        prompts,
        jnp.concatenate([tokens, masked], axis=1),
        null=null,
        causal=masks[shift],
        positions=positions,
    )[0]


def _index_in_block(length: int, block: int, shift: Array) -> Int[Array, "T"]:
    """Index of each token in its block."""
    return (jnp.arange(length) - shift) % block


def _shifted_mask(prefix: int, length: int, block: int, shift: int) -> np.ndarray:
    """`doubled_mask` with a first block of `shift` tokens (0 for a full block)."""
    extra = (block - shift) % block
    mask = doubled_mask(prefix, length + extra, block)
    clean = prefix + length + extra
    index = np.r_[0:prefix, prefix + extra : clean, clean + extra : mask.shape[0]]
    return mask[np.ix_(index, index)]
