"""Highest acceptance that any lossless verifier could reach, for comparison."""

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float

# Grid over the logarithm of time; its truncation and spacing err below 1e-12 as long as
# what is left of `q` outside a prefix is above 1e-37, where float32 ends.
_FROM, _TO, _POINTS = -40.0, 88.0, 641


def optimal_acceptance(
    p: Float[Array, "... V"],
    q: Float[Array, "... V"],
    k: int,
    with_replacement: bool,
) -> Float[Array, "..."]:
    """Highest probability with which a lossless verifier can emit one of `k` drafts.

    The dual of the optimal transport: the least value, over sets `A` of tokens, of
    `1 + p(A) - Pr(all k drafts lie in A)`. A minimiser is a prefix of the tokens in
    ascending order of `p / q` (arXiv 2502.18779), for both ways of drawing. For drafts
    without replacement the probability is that of `k` arrivals among independent
    exponential clocks of rates `q`, before the first outside of `A`; it is integrated
    over time with a verifier that converges exponentially. Exact for any `V`.

    Args:
      p: target probabilities; the last axis sums to 1.
      q: drafter's probabilities.
      k: drafts.
      with_replacement: independent drafts, or none drawn twice.

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
    below = jnp.cumsum(p, axis=-1)
    if with_replacement:
        inside = jnp.minimum(jnp.cumsum(q, axis=-1), 1.0) ** k
    else:
        flat = q.reshape(-1, q.shape[-1])
        inside = jax.vmap(lambda row: _all_inside(row, k))(flat).reshape(q.shape)
    return jnp.minimum(1.0, 1.0 + jnp.min(below - inside, axis=-1))


def _all_inside(q: Float[Array, "V"], k: int) -> Float[Array, "V"]:
    """Chance that `k` draws without replacement all fall among the first tokens."""
    x = jnp.linspace(_FROM, _TO, _POINTS, dtype=q.dtype)
    time, spacing = jnp.exp(x), (_TO - _FROM) / (_POINTS - 1)
    k_possible = jnp.sum(q > 0) >= k
    # Mass outside each prefix, summed from the small end so that it does not cancel.
    outside = jnp.flip(jnp.cumsum(jnp.flip(q)))
    outside = jnp.append(outside[1:], jnp.zeros((), q.dtype))

    def add(counts, item):
        # counts[i]: chance that exactly i of the tokens so far have arrived, i < k.
        rate, rest = item
        stays = jnp.exp(-rate * time)[None]
        one_more = jnp.concatenate([jnp.zeros_like(counts[:1]), counts[:-1]])
        counts = counts * stays + one_more * (1.0 - stays)
        enough = jnp.clip(1.0 - jnp.sum(counts, axis=0), 0.0, 1.0)
        density = rest * time * jnp.exp(-rest * time)
        return counts, jnp.where(rest > 0, spacing * jnp.sum(density * enough), 1.0)

    start = jnp.zeros((k, _POINTS), q.dtype).at[0].set(1.0)
    _, inside = jax.lax.scan(add, start, (q, outside))
    # Tokens that are never drawn do not matter: with none outside all drafts are in.
    return jnp.where(k_possible, jnp.minimum(inside, 1.0), jnp.where(outside > 0, 0, 1))
