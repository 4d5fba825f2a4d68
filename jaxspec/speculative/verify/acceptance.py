"""Highest acceptance of any lossless verifier, for comparison."""

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float

# Grid over the logarithm of time. Its truncation and spacing cause errors below 1e-12
# while the mass of `q` outside a prefix is above 1e-37, the end of float32.
_FROM, _TO, _POINTS = -40.0, 88.0, 641


def optimal_acceptance(
    p: Float[Array, "... V"],
    q: Float[Array, "... V"],
    k: int,
    with_replacement: bool,
) -> Float[Array, "..."]:
    """Highest probability with which a lossless verifier can emit one of `k` drafts.

    It is the dual of an optimal transport problem: the minimum, over sets `A` of
    tokens, of `1 + p(A) - Pr(all k drafts are in A)`. A minimizer is a prefix of the
    tokens in ascending order of `p / q` (arXiv 2502.18779), with and without
    replacement. Without replacement, the probability is that of `k` arrivals of
    independent exponential clocks with rates `q` before the first arrival outside of
    `A`; it is integrated over time by a quadrature that converges exponentially. Exact
    for any `V`.

    Args:
      p: target probabilities; the last axis sums to 1.
      q: drafter's probabilities.
      k: number of drafts.
      with_replacement: whether drafts are independent; else no token repeats.

    Raises:
      ConfigError: `k` is not positive.
    """
    if k < 1:
        raise ConfigError(f"k={k} must be at least 1")
    shape = jnp.broadcast_shapes(p.shape, q.shape)
    p, q = jnp.broadcast_to(p, shape), jnp.broadcast_to(q, shape)
    odds = jnp.where(q > 0, p / jnp.where(q > 0, q, 1.0), jnp.inf)
    order = jnp.argsort(odds, axis=-1)
    p, q = (jnp.take_along_axis(x, order, axis=-1) for x in (p, q))
    prefix_mass = jnp.cumsum(p, axis=-1)
    if with_replacement:
        inside = jnp.minimum(jnp.cumsum(q, axis=-1), 1.0) ** k
    else:
        flat = q.reshape(-1, q.shape[-1])
        inside = jax.vmap(lambda q: _all_inside(q, k))(flat).reshape(q.shape)
    return jnp.minimum(1.0, 1.0 + jnp.min(prefix_mass - inside, axis=-1))


def _all_inside(q: Float[Array, "V"], k: int) -> Float[Array, "V"]:
    """Probability that `k` samples without replacement are all in each prefix."""
    x = jnp.linspace(_FROM, _TO, _POINTS, dtype=q.dtype)
    time, spacing = jnp.exp(x), (_TO - _FROM) / (_POINTS - 1)
    k_possible = jnp.sum(q > 0) >= k
    # Mass outside of each prefix, summed from the end, so that nothing cancels.
    outside = jnp.flip(jnp.cumsum(jnp.flip(q)))
    outside = jnp.append(outside[1:], jnp.zeros((), q.dtype))

    def add(counts, item):
        # counts[i]: probability that exactly i of the tokens so far arrived, i < k.
        rate, rest = item
        stays = jnp.exp(-rate * time)[None]
        one_more = jnp.concatenate([jnp.zeros_like(counts[:1]), counts[:-1]])
        counts = counts * stays + one_more * (1.0 - stays)
        enough = jnp.clip(1.0 - jnp.sum(counts, axis=0), 0.0, 1.0)
        density = rest * time * jnp.exp(-rest * time)
        return counts, jnp.where(rest > 0, spacing * jnp.sum(density * enough), 1.0)

    start = jnp.zeros((k, _POINTS), q.dtype).at[0].set(1.0)
    _, inside = jax.lax.scan(add, start, (q, outside))
    # If no token that can be sampled is outside, all drafts are inside.
    return jnp.where(k_possible, jnp.minimum(inside, 1.0), jnp.where(outside > 0, 0, 1))
