"""What models of several kinds are trained for: functions of parameters and data.

All take codes `[B, T]` and labels `[B]`, null conditions `[B]` and a key, which is
consumed, and return a mean in nats a token. The mask of a model is its first extra
token. A table says who sees whom among the condition and what follows it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.models.masked_diffusion import MaskedDiffusion
from jaxspec.models.transformer import Transformer
from jaxspec.typing import Array, Bool, Float, Int, Params


def masked_loss(
    model: MaskedDiffusion,
    params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    null: Bool[Array, "B"],
    key: Array,
    *,
    least: float = 1e-3,
    most: float = 1.0,
) -> Float[Array, ""]:
    """MDLM's bound (arXiv 2406.07524): `1 / t` times the loss of the hidden tokens.

    Each sequence has a share `t` of hidden tokens between `least` and `most`, drawn
    antithetically over the batch.
    """
    rows, length = codes.shape
    time_key, mask_key = jax.random.split(key)
    even = (jax.random.uniform(time_key) + jnp.arange(rows) / rows) % 1.0
    t = least + (most - least) * even
    hidden = jax.random.uniform(mask_key, codes.shape) < t[:, None]
    tokens = jnp.where(hidden, model.mask_token, codes)
    logits = model.score(params, labels, tokens, null=null)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    each = jnp.sum(jnp.where(hidden, losses, 0.0), axis=1) / (t * length)
    return jnp.mean(each)


def doubled_table(
    prefix: int, length: int, block: int, *, whole: bool
) -> Bool[np.ndarray, "U U"]:
    """Clean tokens, then the same places hidden, in blocks: `U = prefix + 2 length`.

    Clean tokens are causal. A hidden one sees the clean tokens before its block, and
    its block: all of it, or what stands before. Nobody else sees hidden ones. (BD3-LM,
    arXiv 2503.09573; TiDAR, arXiv 2511.08923.)
    """
    clean = prefix + length
    table = np.zeros((clean + length, clean + length), bool)
    table[:clean, :clean] = np.tri(clean, dtype=bool)
    place = np.arange(length)
    begin = prefix + place // block * block  # first clean position of each block
    table[clean:, :clean] = np.arange(clean) < begin[:, None]
    same = place[:, None] // block == place // block
    if not whole:
        same &= place[:, None] >= place
    table[clean:, clean:] = same
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
    config = model.config
    prefix, (rows, length) = config.prefix_length, codes.shape
    shift = jax.random.randint(key, (), 0, block)
    tables = jnp.stack(
        [jnp.asarray(_shifted_table(prefix, length, block, s)) for s in range(block)]
    )
    hidden = jnp.full((rows, length), config.vocab_size, codes.dtype)
    order = np.arange(prefix + length)
    positions = jnp.asarray(np.concatenate([order, order[prefix:]]))
    logits, _ = model.score(
        params,
        labels,
        jnp.concatenate([codes, hidden], axis=1),
        null=null,
        causal=tables[shift],
        positions=positions,
    )
    cross = optax.softmax_cross_entropy_with_integer_labels
    ahead = logits[:, prefix - 1 : prefix + length - 1]
    following = jnp.mean(cross(ahead, codes))
    filled = jnp.mean(cross(logits[:, prefix + length :], codes))
    return (weight * following + filled) / (1.0 + weight), following, filled


def _shifted_table(prefix: int, length: int, block: int, shift: int) -> np.ndarray:
    """`doubled_table` whose first block has `shift` places, if that is not 0."""
    extra = (block - shift) % block
    table = doubled_table(prefix, length + extra, block, whole=True)
    clean = prefix + length + extra
    kept = np.r_[0:prefix, prefix + extra : clean, clean + extra : table.shape[0]]
    return table[np.ix_(kept, kept)]
