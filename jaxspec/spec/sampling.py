"""From logits to the distribution that is sampled: guidance, temperature, filters.

The same functions serve the target and the drafter: both sides of a verification must
be processed alike.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int

Step = Literal["temperature", "top_k", "top_p"]
# LlamaGen's order; LANTERN takes top_p before top_k, VAR filters and then divides.
LLAMAGEN_ORDER: tuple[Step, ...] = ("temperature", "top_k", "top_p")


@register_dataclass
@dataclass(frozen=True)
class Sampling:
    """Settings of each row.

    Attributes:
      temperature: float32 [B]; 0 is greedy.
      top_k: int32 [B]; 0 keeps all.
      top_p: float32 [B] in (0, 1]; 1 keeps all.
      guidance: float32 [B], scale `s` of `u + s (c - u)`.
      guided_tokens: int32 [B]; tokens with an index below this are guided, later ones
        follow the conditional stream alone.
    """

    temperature: Float[Array, "B"]
    top_k: Int[Array, "B"]
    top_p: Float[Array, "B"]
    guidance: Float[Array, "B"]
    guided_tokens: Int[Array, "B"]


def make_sampling(
    rows: int,
    *,
    temperature: float | Array = 1.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    guidance: float | Array = 1.0,
    guidance_interval: int | Array = -1,
) -> Sampling:
    """Checks settings given as numbers or as arrays of `rows`.

    Args:
      rows: `B`.
      temperature: 0 (greedy) or more.
      top_k: 0 (all) or the number of tokens kept.
      top_p: in (0, 1].
      guidance: classifier-free guidance scale, 1 for none.
      guidance_interval: -1 guides every token; otherwise the first token and those
        decided in steps up to the interval are guided (LlamaGen's `cfg_interval`).

    Raises:
      ConfigError: a value is outside its range.
    """

    def check(name, value, dtype, good, wanted):
        value = np.broadcast_to(np.asarray(value), (rows,))
        if not (np.isfinite(value) & good(value)).all():
            bad = value[~(np.isfinite(value) & good(value))][0]
            raise ConfigError(f"{name}={bad} is impossible; use {wanted}")
        return jnp.asarray(value, dtype)

    last = np.iinfo(np.int32).max
    interval = np.broadcast_to(np.asarray(guidance_interval), (rows,))
    return Sampling(
        check(
            "temperature",
            temperature,
            jnp.float32,
            lambda x: x >= 0,
            "0 (greedy) or more",
        ),
        check("top_k", top_k, jnp.int32, lambda x: x >= 0, "0 (keep all) or more"),
        check(
            "top_p",
            top_p,
            jnp.float32,
            lambda x: (x > 0) & (x <= 1),
            "a value above 0 and up to 1 (keep all)",
        ),
        check("guidance", guidance, jnp.float32, lambda x: x >= 0, "0 or more"),
        check(
            "guidance_interval",
            np.where(interval < 0, last, interval + 2),
            jnp.int32,
            lambda x: x > 0,
            "-1 (always) or a step",
        ),
    )


def guide(
    logits: Float[Array, "R ... V"], sampling: Sampling, index: Int[Array, "B ..."]
) -> Float[Array, "B ... V"]:
    """Merges the guidance streams of each row.

    Args:
      logits: streams x rows, conditional rows first; with one stream nothing happens.
      sampling: settings of `B` rows.
      index: which generated token each score is for (0 is the first).
    """
    rows = sampling.temperature.shape[0]
    if logits.shape[0] == rows:
        return logits
    conditional, unconditional = logits[:rows], logits[rows:]
    extra = (1,) * (index.ndim - 1)
    scale = sampling.guidance.reshape(-1, *extra, 1)
    guided = unconditional + scale * (conditional - unconditional)
    on = (index < sampling.guided_tokens.reshape(-1, *extra)) & (scale[..., 0] != 1)
    return jnp.where(on[..., None], guided, conditional)


def process(
    logits: Float[Array, "B ... V"],
    sampling: Sampling,
    order: tuple[Step, ...] = LLAMAGEN_ORDER,
) -> Float[Array, "B ... V"]:
    """Applies temperature and filters, each row its own, in the given order.

    Greedy rows (temperature 0) keep their logits: nothing that is filtered could be
    their argmax. What is filtered out becomes -inf.

    Args:
      logits: merged logits, float32.
      sampling: settings of each row.
      order: static; a step that is left out is not compiled.
    """
    shape = (-1,) + (1,) * (logits.ndim - 1)
    temperature = sampling.temperature.reshape(shape)
    steps = {
        "temperature": lambda x: x / jnp.where(temperature > 0, temperature, 1.0),
        "top_k": lambda x: keep_top_k(x, sampling.top_k.reshape(shape)),
        "top_p": lambda x: keep_top_p(x, sampling.top_p.reshape(shape)),
    }
    for step in order:
        logits = steps[step](logits)
    return logits


def active_steps(sampling: Sampling) -> tuple[Step, ...]:
    """The steps of `LLAMAGEN_ORDER` that concrete settings need."""
    steps: list[Step] = ["temperature"]
    if bool((sampling.top_k > 0).any()):
        steps.append("top_k")
    if bool((sampling.top_p < 1).any()):
        steps.append("top_p")
    return tuple(steps)


def keep_top_k(
    logits: Float[Array, "... V"], k: Int[Array, "... 1"]
) -> Float[Array, "... V"]:
    """Keeps the `k` largest (all that tie with the k-th); 0 keeps everything."""
    k = jnp.where(k <= 0, logits.shape[-1], k)
    bits = _ordered_bits(logits)
    threshold = _largest_threshold(
        bits, lambda kept: jnp.sum(kept, -1, keepdims=True, dtype=jnp.int32) >= k
    )
    return jnp.where(bits >= threshold, logits, -jnp.inf)


def keep_top_p(
    logits: Float[Array, "... V"], p: Float[Array, "... 1"]
) -> Float[Array, "... V"]:
    """Keeps the smallest set of likeliest tokens whose mass reaches `p`.

    The token that crosses `p` stays, so at least one does; 1 keeps everything.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    bits = _ordered_bits(logits)
    threshold = _largest_threshold(
        bits,
        lambda kept: (
            jnp.sum(jnp.where(kept, probabilities, 0.0), -1, keepdims=True) >= p
        ),
    )
    return jnp.where((bits >= threshold) | (p >= 1), logits, -jnp.inf)


def _ordered_bits(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Maps float32 to uint32 so that order is kept."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _largest_threshold(bits, enough):
    """Largest 32-bit `t`, one a row, for which `enough(bits >= t)`; bit by bit."""

    def try_bit(i, t):
        candidate = t | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(bits >= candidate), candidate, t)

    start = jnp.zeros((*bits.shape[:-1], 1), jnp.uint32)
    return jax.lax.fori_loop(0, 32, try_bit, start)
