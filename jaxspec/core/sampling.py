"""From logits to the distribution that is sampled: guidance, temperature, filters.

The same functions serve the target and the drafter: both sides of a verification must
be processed alike.
"""

from dataclasses import dataclass, fields
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.core.arguments import broadcast_to_batch, check_rows
from jaxspec.core.mesh_sync import varying
from jaxspec.core.numbers import LARGEST_SCALE, WHOLE, held, whole, within
from jaxspec.core.vocab_parallel import vocab_shards
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int

Step = Literal["temperature", "top_k", "top_p"]
# LlamaGen's order; LANTERN takes top_p before top_k, VAR filters and then divides.
LLAMAGEN_ORDER: tuple[Step, ...] = ("temperature", "top_k", "top_p")
_LAST_STEP = 1 << 20


@register_dataclass
@dataclass(frozen=True)
class Sampling:
    """Sampling settings of each sequence; make them with `create`.

    Attributes:
      temperature: float32 [B]; 0 is greedy.
      top_k: int32 [B]; 0 keeps all tokens.
      top_p: float32 [B] in (0, 1]; 1 keeps all tokens.
      cfg_scale: float32 [B], scale `s` of `u + s (c - u)`.
      cfg_tokens: int32 [B], number of tokens that are guided; later ones follow the
        conditional branch alone.
    """

    temperature: Float[Array, "B"]
    top_k: Int[Array, "B"]
    top_p: Float[Array, "B"]
    cfg_scale: Float[Array, "B"]
    cfg_tokens: Int[Array, "B"]

    @classmethod
    def create(
        cls,
        batch: int | None = None,
        *,
        temperature: float | Array = 1.0,
        top_k: int | Array = 0,
        top_p: float | Array = 1.0,
        cfg_scale: float | Array = 1.0,
        cfg_interval: int | Array = -1,
    ) -> "Sampling":
        """Checks settings given as numbers or as arrays with one entry a sequence.

        Args:
          batch: number of sequences, `B`. None leaves single numbers as they are, for
            `for_batch`, which the engine calls.
          temperature: 0 (greedy), or 0.001 to 1e6.
          top_k: number of tokens kept; 0 keeps all.
          top_p: probability mass kept, in (0, 1].
          cfg_scale: classifier-free guidance scale, 0 to 1e6; 1 for none.
          cfg_interval: last step that is guided (LlamaGen's `cfg_interval`); the first
            token is guided too. -1 guides every token.

        Raises:
          ConfigError: a value is outside its range, is not finite or, where a whole
            number is asked for, is none; or a shape is neither `[]` nor `[B]`.
        """
        interval = whole("cfg_interval", cfg_interval, -1, _LAST_STEP)
        settings = {
            "temperature": held(
                "temperature",
                temperature,
                np.float32,
                lambda x: (x == 0) | (x >= np.float32(1e-3)) & (x <= LARGEST_SCALE),
                f"0 (greedy), or 0.001 to {LARGEST_SCALE:.0f}",
            ),
            "top_k": whole("top_k", top_k, 0),
            "top_p": within("top_p", top_p, most=1.0, above=True),
            "cfg_scale": within("cfg_scale", cfg_scale),
            "cfg_tokens": np.where(interval < 0, WHOLE, interval + 2).astype(np.int32),
        }
        sampling = cls(**{name: jnp.asarray(x) for name, x in settings.items()})
        return sampling if batch is None else sampling.for_batch(batch)

    def for_batch(self, batch: int) -> "Sampling":
        """The settings as arrays `[B]`.

        Raises:
          ConfigError: an array is neither `[]` nor `[B]`.
        """
        return Sampling(
            **{
                field.name: broadcast_to_batch(
                    field.name, getattr(self, field.name), batch
                )
                for field in fields(self)
            }
        )


def apply_cfg(
    logits: Float[Array, "R ... V"], sampling: Sampling, index: Int[Array, "B ..."]
) -> Float[Array, "B ... V"]:
    """Merges the guidance streams of each row.

    Args:
      logits: streams x rows, conditional rows first; with one stream nothing happens.
      sampling: settings of `B` rows.
      index: which generated token each score is for (0 is the first).

    Raises:
      ConfigError: numbers of rows do not fit.
    """
    rows = sampling.temperature.shape[0]
    check_rows(rows, sampling=sampling, index=index)
    if logits.shape[0] == rows:
        return logits
    if logits.shape[0] != 2 * rows:
        raise ConfigError(
            f"logits of {logits.shape[0]} rows do not fit sampling settings of {rows}; "
            "give one row each, or two with guidance: conditional rows first"
        )
    conditional, unconditional = logits[:rows], logits[rows:]
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
    """Applies temperature and filters, each row its own, in the given order.

    What is filtered out becomes -inf. Greedy rows (temperature 0) keep all their
    logits: nothing that is filtered could be their argmax.

    Args:
      logits: merged logits, float32.
      sampling: settings of each row.
      order: static; a step that is left out is not compiled.

    Raises:
      ConfigError: settings of another number of rows.
    """
    return process_logits_with_bounds(logits, sampling, order, 0.0)[0]


def process_logits_with_bounds(
    logits: Float[Array, "B ... V"],
    sampling: Sampling,
    order: tuple[Step, ...],
    slack: float,
) -> tuple[Float[Array, "B ... V"], Float[Array, "B ... V"] | None]:
    """`process_logits`, and what could not be told with certainty.

    Args:
      slack: how far the model's logits may be off; see `rounding_gain`.

    Returns:
      The processed logits, and the scores of doubtful tokens: those that a filter would
      treat otherwise if logits moved by up to `slack`, kept or not; -inf elsewhere,
      None without a filter.
    """
    check_rows(logits.shape[0], sampling=sampling)
    shape = (-1,) + (1,) * (logits.ndim - 1)
    temperature = sampling.temperature.reshape(shape)
    sampled = temperature > 0
    kept, plain, doubt = logits, logits, None
    # Filters may stand before a temperature that shrinks differences.
    factor = rounding_gain(sampling) * jnp.maximum(sampling.temperature, 1.0)
    off = (slack * factor).reshape(shape)
    for step in order:
        if step == "temperature":
            divisor = jnp.where(sampled, temperature, 1.0)
            kept, plain = kept / divisor, plain / divisor
        elif step == "top_k":
            k = jnp.where(sampled, sampling.top_k.reshape(shape), 0)
            edge = _kth_largest(kept, k)
            new = _doubt_top_k(kept, edge, k, off)
            if doubt is not None:  # whoever is in doubt may free or take a place
                spare = jnp.sum(doubt, axis=-1, keepdims=True)
                near = _between_ranks(kept, k - spare, k + spare, off)
                new |= near & (spare > 0) & (k > 0)
            kept = _keep(kept, kept >= edge)
            doubt = new if doubt is None else doubt | new
        else:
            p = jnp.where(sampled, sampling.top_p.reshape(shape), 1.0)
            vague = off
            if doubt is not None:
                chances = jnp.where(doubt, jax.nn.softmax(kept, axis=-1), 0.0)
                vague = off + 2 * jnp.sum(chances, axis=-1, keepdims=True)
            masses = p - vague, p, jnp.minimum(p + vague, 1.0)
            tight, edge, loose = _crossings(kept, masses)
            new = _doubt_top_p(kept, tight, loose, off) & (p < 1)
            kept = _keep(kept, (kept >= edge) | (p >= 1))
            doubt = new if doubt is None else doubt | new
    if doubt is None:
        return kept, None
    return kept, jnp.where(doubt, plain, -jnp.inf)


def rounding_gain(sampling: Sampling) -> Float[Array, "B"]:
    """How much guidance and temperature enlarge a rounding error of the logits."""
    scale = sampling.cfg_scale
    merged = jnp.maximum(jnp.abs(scale) + jnp.abs(scale - 1.0), 1.0)
    temperature = sampling.temperature
    return merged / jnp.where(temperature > 0, temperature, 1.0)


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
    return _keep(logits, logits >= _kth_largest(logits, k))


def keep_top_p(
    logits: Float[Array, "... V"], p: Float[Array, "... 1"]
) -> Float[Array, "... V"]:
    """Keeps the smallest set of likeliest tokens whose mass reaches `p`.

    The token that crosses `p` stays, so at least one does; 1 keeps everything.
    """
    (edge,) = _crossings(logits, (p,))
    return _keep(logits, (logits >= edge) | (p >= 1))


def _keep(logits, wanted):
    """Drops the others; NaN stays, to be found."""
    return jnp.where(wanted | jnp.isnan(logits), logits, -jnp.inf)


def _digit_bits() -> int:
    """Bits that are decided at a time: more where each decision is an exchange."""
    return 4 if vocab_shards() > 1 else 1


def _with_digits(found, i, width):
    """The codes that continue `found` [..., 1] with each digit but 0, [..., c]."""
    shift = jnp.uint32(32 - width) - jnp.uint32(width) * jnp.asarray(i, jnp.uint32)
    digits = jnp.arange(1, 1 << width, dtype=jnp.uint32) << shift
    return found | digits.reshape(*(1,) * (found.ndim - 1), -1)


def _kth_largest(logits, k):
    """Value of the k-th largest logit, `[..., 1]`; the smallest for `k` of 0."""
    k = jnp.where(k <= 0, logits.shape[-1], jnp.minimum(k, logits.shape[-1]))
    bits, width = _ordered_bits(logits), _digit_bits()
    early = width == 1  # devices that exchange counts would have to agree to stop

    def undecided(carry):
        i, _, count = carry
        return (i < 32 // width) & (jnp.any(count != k) if early else True)

    def try_digit(carry):
        i, found, count = carry
        codes = _with_digits(found, i, width)
        above = bits[..., None, :] >= codes[..., :, None]
        held = jnp.sum(above, axis=-1, dtype=jnp.int32)  # falls from code to code
        enough = held >= k
        best = jnp.max(jnp.where(enough, codes, found), axis=-1, keepdims=True)
        least = jnp.min(jnp.where(enough, held, count), axis=-1, keepdims=True)
        return i + 1, best, least

    zero = jnp.zeros((*bits.shape[:-1], 1), jnp.uint32)
    start = zero, jnp.full(zero.shape, logits.shape[-1], jnp.int32)
    start = jnp.int32(0), *varying(start, bits, k)
    found = jax.lax.while_loop(undecided, try_digit, start)[1]
    return _least(logits, bits >= found)


def _crossings(logits, masses):
    """Logits of the tokens with which the mass, likeliest first, reaches each mass."""
    chances = jax.nn.softmax(logits, axis=-1)
    bits, width = _ordered_bits(logits), _digit_bits()

    def try_digit(i, found):
        def one(found, mass):
            codes = _with_digits(found, i, width)
            above = bits[..., None, :] >= codes[..., :, None]
            held = jnp.sum(jnp.where(above, chances[..., None, :], 0.0), axis=-1)
            codes = jnp.where(held >= mass, codes, found)
            return jnp.max(codes, axis=-1, keepdims=True)

        return tuple(map(one, found, masses))

    zero = jnp.zeros((*bits.shape[:-1], 1), jnp.uint32)
    start = varying((zero,) * len(masses), bits, *masses)
    found = jax.lax.fori_loop(0, 32 // width, try_digit, start)
    return tuple(_least(logits, bits >= t) for t in found)


def _between_ranks(logits, low, high, slack):
    """Tokens whose rank, counted from the largest, lies between two ranks."""
    top = _kth_largest(logits, jnp.maximum(low, 1)) + slack
    bottom = _kth_largest(logits, jnp.maximum(high, 1)) - slack
    return (logits <= top) & (logits >= bottom)


def _doubt_top_k(logits, edge, k, slack):
    """Tokens at the edge of the k largest, if the edge is no clear gap."""
    near = jnp.abs(logits - edge) <= slack
    count = jnp.sum(logits >= edge - slack, -1, keepdims=True)
    return near & (count > k) & (k > 0)


def _doubt_top_p(logits, tight, loose, slack):
    """Tokens between the edges of slightly smaller and slightly larger masses.

    The likeliest token is always kept, so it is in doubt only beside a rival. So is a
    token that is the edge of either mass, with no other near it.
    """
    between = (logits <= tight + slack) & (logits >= loose - slack)
    beside = jnp.sum(jnp.abs(logits - tight) <= slack, -1, keepdims=True)
    between &= (tight != loose) | (beside > 1)
    top = jnp.max(logits, axis=-1, keepdims=True)
    rivals = jnp.sum(logits >= top - slack, -1, keepdims=True) > 1
    return between & ((logits < top) | rivals)


def _ordered_bits(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Maps float32 to uint32 so that order is kept.

    Thresholds are found among them bit by bit, which needs no sort.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _least(logits, wanted):
    return jnp.min(jnp.where(wanted, logits, jnp.inf), -1, keepdims=True)
