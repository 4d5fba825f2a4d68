"""Logits processors: classifier-free guidance, temperature, top-k and top-p.

Target and drafter are processed by the same functions, since a verifier compares their
distributions.
"""

import jax
import jax.numpy as jnp

from jaxspec.core.arguments import check_batch
from jaxspec.core.mesh_sync import varying
from jaxspec.core.sampling import LLAMAGEN_ORDER, Sampling, Step
from jaxspec.core.vocab_parallel import vocab_shards
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Bool, Float, Int, UInt32


def apply_cfg(
    logits: Float[Array, "R ... V"], sampling: Sampling, index: Int[Array, "B ..."]
) -> Float[Array, "B ... V"]:
    """Merges the logits of the branches of classifier-free guidance.

    Args:
      logits: logits of all branches, conditional ones first. Those of a single branch
        are returned unchanged.
      sampling: sampling settings of the sequences.
      index: index of the generated token that each position predicts; the first is 0.

    Raises:
      ConfigError: the arrays have different numbers of sequences.
    """
    batch = sampling.temperature.shape[0]
    check_batch(batch, sampling=sampling, index=index)
    if logits.shape[0] == batch:
        return logits
    if logits.shape[0] != 2 * batch:
        raise ConfigError(
            f"logits of {logits.shape[0]} sequences do not fit sampling settings of "
            f"{batch}; give one array per sequence, or with guidance two: conditional "
            "ones first"
        )
    conditional, unconditional = logits[:batch], logits[batch:]
    extra = (1,) * (index.ndim - 1)
    scale = sampling.cfg_scale.reshape(-1, *extra, 1)
    guided = unconditional + scale * (conditional - unconditional)
    on = (index < sampling.cfg_tokens.reshape(-1, *extra)) & (scale[..., 0] != 1)
    return jnp.where(on[..., None], guided, conditional)


def process_logits(
    logits: Float[Array, "B ... V"],
    sampling: Sampling,
    order: tuple[Step, ...] = LLAMAGEN_ORDER,
) -> Float[Array, "B ... V"]:
    """Applies temperature and filters with the settings of each sequence.

    Filtered tokens become -inf. Greedy sequences (temperature 0) keep all logits, as no
    filter removes the argmax.

    Args:
      logits: float32, logits after guidance.
      sampling: sampling settings of the sequences.
      order: steps in the order in which they are applied; static. Steps that are left
        out are not compiled.

    Raises:
      ConfigError: logits and settings have different numbers of sequences, or a step is
        unknown.
    """
    check_batch(logits.shape[0], sampling=sampling)
    divisor, top_k, top_p = step_settings(sampling, logits.ndim)
    for step in order:
        if step == "temperature":
            logits = logits / divisor
        elif step == "top_k":
            logits = keep(logits, logits >= kth_largest(logits, top_k))
        elif step == "top_p":
            (threshold,) = mass_thresholds(logits, (top_p,))
            logits = keep(logits, (logits >= threshold) | (top_p >= 1))
        else:
            raise ConfigError(
                f"{step!r} is no step; choose among {', '.join(LLAMAGEN_ORDER)}"
            )
    return logits


def step_settings(sampling: Sampling, ndim: int) -> tuple[Array, Array, Array]:
    """Divisor, k and p of each sequence, with `ndim` axes; 1, 0 and 1 if greedy."""
    shape = (-1,) + (1,) * (ndim - 1)
    temperature = sampling.temperature.reshape(shape)
    sampled = temperature > 0
    return (
        jnp.where(sampled, temperature, 1.0),
        jnp.where(sampled, sampling.top_k.reshape(shape), 0),
        jnp.where(sampled, sampling.top_p.reshape(shape), 1.0),
    )


def keep(
    logits: Float[Array, "... V"], kept: Bool[Array, "... V"]
) -> Float[Array, "... V"]:
    """Sets logits that are not kept to -inf; NaN stays, so that it is detected."""
    return jnp.where(kept | jnp.isnan(logits), logits, -jnp.inf)


def kth_largest(
    logits: Float[Array, "... V"], k: Int[Array, "... 1"]
) -> Float[Array, "... 1"]:
    """Value of the k-th largest logit; the smallest logit if `k` is 0.

    The value is found digit by digit, without a sort.
    """
    k = jnp.where(k <= 0, logits.shape[-1], jnp.minimum(k, logits.shape[-1]))
    bits, width = _ordered_bits(logits), _digit_width()
    early = width == 1  # with shards, an early stop would need a collective

    def undecided(carry):
        i, _, count = carry
        return (i < 32 // width) & (jnp.any(count != k) if early else True)

    def decide_digit(carry):
        i, prefix, count = carry
        candidates = _with_digit(prefix, i, width)
        above = bits[..., None, :] >= candidates[..., :, None]
        counts = jnp.sum(above, axis=-1, dtype=jnp.int32)  # decrease with the digit
        enough = counts >= k
        prefix = jnp.max(jnp.where(enough, candidates, prefix), axis=-1, keepdims=True)
        count = jnp.min(jnp.where(enough, counts, count), axis=-1, keepdims=True)
        return i + 1, prefix, count

    zero = jnp.zeros((*bits.shape[:-1], 1), jnp.uint32)
    start = zero, jnp.full(zero.shape, logits.shape[-1], jnp.int32)
    start = jnp.int32(0), *varying(start, bits, k)
    bound = jax.lax.while_loop(undecided, decide_digit, start)[1]
    return _smallest(logits, bits >= bound)


def mass_thresholds(
    logits: Float[Array, "... V"], masses: tuple[Float[Array, "... 1"], ...]
) -> tuple[Float[Array, "... 1"], ...]:
    """Logits of the tokens at which the cumulative probability reaches each mass.

    Probabilities are added from the likeliest token on.
    """
    probs = jax.nn.softmax(logits, axis=-1)
    bits, width = _ordered_bits(logits), _digit_width()

    def decide_digit(i, prefixes):
        def decide(prefix, mass):
            candidates = _with_digit(prefix, i, width)
            above = bits[..., None, :] >= candidates[..., :, None]
            total = jnp.sum(jnp.where(above, probs[..., None, :], 0.0), axis=-1)
            candidates = jnp.where(total >= mass, candidates, prefix)
            return jnp.max(candidates, axis=-1, keepdims=True)

        return tuple(map(decide, prefixes, masses))

    zero = jnp.zeros((*bits.shape[:-1], 1), jnp.uint32)
    start = varying((zero,) * len(masses), bits, *masses)
    bounds = jax.lax.fori_loop(0, 32 // width, decide_digit, start)
    return tuple(_smallest(logits, bits >= bound) for bound in bounds)


def _digit_width() -> int:
    """Bits that are decided at once; more if each decision is a collective."""
    return 4 if vocab_shards() > 1 else 1


def _with_digit(prefix, i, width):
    """Numbers that continue `prefix` [..., 1] with each nonzero digit, [..., c]."""
    shift = jnp.uint32(32 - width) - jnp.uint32(width) * jnp.asarray(i, jnp.uint32)
    digits = jnp.arange(1, 1 << width, dtype=jnp.uint32) << shift
    return prefix | digits.reshape(*(1,) * (prefix.ndim - 1), -1)


def _ordered_bits(x: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Maps float32 to uint32 of the same order, so that bits can be searched."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _smallest(logits, mask):
    return jnp.min(jnp.where(mask, logits, jnp.inf), -1, keepdims=True)
