"""Divergences between the distributions of target and drafter, as training losses."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Float, Int

# Log-probability of an impossible token: finite, so that 0 times it is 0.
_LOG_ZERO = -80.0
Divergence = Literal["cross_entropy", "forward_kl", "reverse_kl", "tvd", "tvd++"]


def divergence(
    name: Divergence,
    target_logits: Float[Array, "... V"],
    drafter_logits: Float[Array, "... V"],
    tokens: Int[Array, "..."],
    valid: Bool[Array, "..."],
) -> Float[Array, "..."]:
    """Divergence of each prediction in nats; smaller is closer.

    - "cross_entropy": cross-entropy to the token of the data (hard labels);
    - "forward_kl": `KL(p | q)` up to the entropy of `p` (soft labels);
    - "reverse_kl": `KL(q | p)`;
    - "tvd": `1 - sum min(p, q)`, the probability that a sample of `q` is rejected;
    - "tvd++": a surrogate loss with the gradient of "tvd", whose rewards are whitened
      over all predictions; its value has no meaning (arXiv 2403.00858).

    Tokens outside the drafter's vocabulary (logits of -inf) are removed from `p`, which
    is renormalized (EAGLE-3, arXiv 2503.01840). If the data's token is one of them,
    "cross_entropy" is 0.

    Args:
      name: one of the divergences above.
      target_logits: float32 [..., V], logits of `p`, without a gradient.
      drafter_logits: float32 [..., V], logits of `q`.
      tokens: int32 [...], tokens of the data.
      valid: bool [...], predictions over which "tvd++" is whitened.
    """
    drafted = drafter_logits > -jnp.inf
    log_p = jax.nn.log_softmax(jnp.where(drafted, target_logits, -jnp.inf), axis=-1)
    log_p = jnp.where(drafted, jax.lax.stop_gradient(log_p), _LOG_ZERO)
    log_q = jnp.where(drafted, jax.nn.log_softmax(drafter_logits, axis=-1), _LOG_ZERO)
    return _DIVERGENCES[name](log_p, log_q, tokens, valid)


def overlap(
    target_logits: Float[Array, "... V"], drafter_logits: Float[Array, "... V"]
) -> Float[Array, "..."]:
    """Overlap `sum min(p, q)`: the probability that a sample of `q` is accepted."""
    p = jax.nn.softmax(target_logits, axis=-1)
    q = jax.nn.softmax(drafter_logits, axis=-1)
    return jnp.sum(jnp.minimum(p, q), axis=-1)


def _cross_entropy(log_p, log_q, tokens, valid):
    taken = jnp.take_along_axis(log_q, tokens[..., None], axis=-1)[..., 0]
    return jnp.where(taken > _LOG_ZERO, -taken, 0.0)


def _forward_kl(log_p, log_q, tokens, valid):
    return -jnp.sum(jnp.exp(log_p) * log_q, axis=-1)


def _reverse_kl(log_p, log_q, tokens, valid):
    return jnp.sum(jnp.exp(log_q) * (log_q - jnp.maximum(log_p, _LOG_ZERO)), axis=-1)


def _tvd(log_p, log_q, tokens, valid):
    return 1.0 - jnp.sum(jnp.minimum(jnp.exp(log_p), jnp.exp(log_q)), axis=-1)


def _tvd_plus(log_p, log_q, tokens, valid):
    q = jax.lax.stop_gradient(jnp.exp(log_q))
    reward = (log_p > log_q).astype(log_q.dtype)
    weight = jnp.where(valid[..., None], q, 0.0)  # samples of the drafter
    total = jnp.maximum(jnp.sum(weight), 1e-6)
    mean = jnp.sum(weight * reward) / total
    deviation = jnp.sqrt(jnp.sum(weight * (reward - mean) ** 2) / total)
    whitened = (reward - mean) / jnp.maximum(deviation, 1e-6)
    return -jnp.sum(jax.lax.stop_gradient(q * whitened) * log_q, axis=-1)


_DIVERGENCES: dict[str, Callable] = {
    "cross_entropy": _cross_entropy,
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "tvd": _tvd,
    "tvd++": _tvd_plus,
}
assert set(_DIVERGENCES) == set(get_args(Divergence))
