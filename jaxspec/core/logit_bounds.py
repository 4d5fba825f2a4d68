"""Tokens whose top-k or top-p decision may depend on rounding.

Two passes that compute the same logits by programs of different shapes round
differently. Assume that at each filter their logits differ by at most `reach / 2`. Then
the difference of two logits changes by at most `reach`, and a token that leads another
by more is ahead in both passes. Filters need more than this: they keep the tokens above
a threshold that depends on all logits, so two passes may keep different tokens although
the logits of these are clearly apart. `process_logits_with_bounds` returns all tokens
for which this is possible; every other token is kept in both passes or in none.

- Top-k: the k-th largest logit moves by at most `reach / 2`. Tokens within `reach` of
  it are uncertain, unless at most k tokens are above `threshold - reach`: these are
  kept in both passes.
- Top-p: every probability changes by a factor of at most `exp(reach)`, and the mass of
  any set of tokens by less than `reach`. In the other pass the cumulative mass reaches
  p between the tokens where it reaches `p - reach` (threshold `upper`) and `p + reach`
  (threshold `lower`) in this one; tokens between them, widened by `reach`, are
  uncertain. A single token that is both thresholds, with no other token within
  `reach`, is kept in both passes, and so is a single likeliest token.
- After an earlier filter with n uncertain tokens of mass u, ranks may shift by n and
  masses by 2 u (u leaves, and about as much enters): the intervals grow by this.
"""

import jax
import jax.numpy as jnp

from jaxspec.core.arguments import check_batch
from jaxspec.core.logits import keep, kth_largest, mass_thresholds, step_settings
from jaxspec.core.sampling import Sampling, Step
from jaxspec.typing import Array, Float


def rounding_gain(sampling: Sampling) -> Float[Array, "B"]:
    """Factor by which guidance and temperature enlarge a rounding error of logits."""
    scale = sampling.cfg_scale
    merged = jnp.maximum(jnp.abs(scale) + jnp.abs(scale - 1.0), 1.0)
    temperature = sampling.temperature
    return merged / jnp.where(temperature > 0, temperature, 1.0)


def process_logits_with_bounds(
    logits: Float[Array, "B ... V"],
    sampling: Sampling,
    order: tuple[Step, ...],
    slack: float,
) -> tuple[Float[Array, "B ... V"], Float[Array, "B ... V"] | None]:
    """Applies `process_logits`, and finds tokens whose filtering is uncertain.

    Args:
      logits: float32, logits after guidance.
      sampling: sampling settings of the sequences.
      order: steps in the order in which they are applied; static.
      slack: largest change of the difference of two logits of the model, before
        guidance and temperature enlarge it, see `rounding_gain`.

    Returns:
      The processed logits, and those of uncertain tokens without filters, whether kept
      or not; -inf for all other tokens. The latter is None if `order` has no filter.

    Raises:
      ConfigError: logits and settings have different numbers of sequences.
    """
    check_batch(logits.shape[0], sampling=sampling)
    divisor, top_k, top_p = step_settings(sampling, logits.ndim)
    unfiltered, uncertain = logits, None
    # A temperature above 1 shrinks errors, but filters may come before it.
    gain = rounding_gain(sampling) * jnp.maximum(sampling.temperature, 1.0)
    reach = (slack * gain).reshape(divisor.shape)
    for step in order:
        if step == "temperature":
            logits, unfiltered = logits / divisor, unfiltered / divisor
            continue
        if step == "top_k":
            logits, mask = _top_k_with_bounds(logits, top_k, uncertain, reach)
        else:
            logits, mask = _top_p_with_bounds(logits, top_p, uncertain, reach)
        uncertain = mask if uncertain is None else uncertain | mask
    if uncertain is None:
        return logits, None
    return logits, jnp.where(uncertain, unfiltered, -jnp.inf)


def _top_k_with_bounds(logits, k, uncertain, reach):
    """Logits after top-k, and the mask of tokens that it may treat differently."""
    threshold = kth_largest(logits, k)
    near = jnp.abs(logits - threshold) <= reach
    count = jnp.sum(logits >= threshold - reach, -1, keepdims=True)
    mask = near & (count > k) & (k > 0)
    if uncertain is not None:
        shift = jnp.sum(uncertain, axis=-1, keepdims=True)
        upper = kth_largest(logits, jnp.maximum(k - shift, 1)) + reach
        lower = kth_largest(logits, jnp.maximum(k + shift, 1)) - reach
        between = (logits <= upper) & (logits >= lower)
        mask |= between & (shift > 0) & (k > 0)
    return keep(logits, logits >= threshold), mask


def _top_p_with_bounds(logits, p, uncertain, reach):
    """Logits after top-p, and the mask of tokens that it may treat differently."""
    mass_error = reach
    if uncertain is not None:
        probs = jnp.where(uncertain, jax.nn.softmax(logits, axis=-1), 0.0)
        mass_error = reach + 2 * jnp.sum(probs, axis=-1, keepdims=True)
    masses = p - mass_error, p, jnp.minimum(p + mass_error, 1.0)
    upper, threshold, lower = mass_thresholds(logits, masses)
    mask = (logits <= upper + reach) & (logits >= lower - reach)
    near = jnp.sum(jnp.abs(logits - upper) <= reach, -1, keepdims=True)
    mask &= (upper != lower) | (near > 1)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    has_rival = jnp.sum(logits >= largest - reach, -1, keepdims=True) > 1
    mask &= (logits < largest) | has_rival
    kept = (logits >= threshold) | (p >= 1)
    return keep(logits, kept), mask & (p < 1)
