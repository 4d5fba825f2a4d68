"""How far a drafter's law is from the target's: what training makes small."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Float, Int

# A log-probability that stands for none: finite, so that 0 times it is 0.
_NEVER = -80.0
Divergence = Literal["cross_entropy", "forward_kl", "reverse_kl", "tvd", "tvd++"]


def divergence(
    name: Divergence,
    target: Float[Array, "... V"],
    drafter: Float[Array, "... V"],
    tokens: Int[Array, "..."],
    present: Bool[Array, "..."],
) -> Float[Array, "..."]:
    """One number a guess; smaller is closer.

    - "cross_entropy": to the token of the data, hard labels;
    - "forward_kl": `KL(p | q)` up to the entropy of `p`, soft labels;
    - "reverse_kl": `KL(q | p)`;
    - "tvd": `1 - sum min(p, q)`, the chance that an honest draft is rejected;
    - "tvd++": the same gradient with its rewards whitened over all guesses, as a loss
      whose value means nothing (arXiv 2403.00858).

    Tokens that the drafter never drafts (logits of -inf) are left out of `p`, which is
    taken relative to the others (EAGLE-3, arXiv 2503.01840); where the data hold one,
    "cross_entropy" is 0.

    Args:
      name: see above.
      target: logits of `p`; no gradient flows into them.
      drafter: logits of `q`.
      tokens: int32, the tokens of the data.
      present: guesses that count, for whitening.
    """
    known = drafter > -jnp.inf
    log_p = jax.nn.log_softmax(jnp.where(known, target, -jnp.inf), axis=-1)
    log_p = jnp.where(known, jax.lax.stop_gradient(log_p), _NEVER)
    log_q = jnp.where(known, jax.nn.log_softmax(drafter, axis=-1), _NEVER)
    return _OF[name](log_p, log_q, tokens, present)


def overlap(
    target: Float[Array, "... V"], drafter: Float[Array, "... V"]
) -> Float[Array, "..."]:
    """`sum min(p, q)`: the chance that an honest draft is accepted."""
    p, q = jax.nn.softmax(target, axis=-1), jax.nn.softmax(drafter, axis=-1)
    return jnp.sum(jnp.minimum(p, q), axis=-1)


def _cross_entropy(log_p, log_q, tokens, present):
    own = jnp.take_along_axis(log_q, tokens[..., None], axis=-1)[..., 0]
    return jnp.where(own > _NEVER, -own, 0.0)


def _forward_kl(log_p, log_q, tokens, present):
    return -jnp.sum(jnp.exp(log_p) * log_q, axis=-1)


def _reverse_kl(log_p, log_q, tokens, present):
    return jnp.sum(jnp.exp(log_q) * (log_q - jnp.maximum(log_p, _NEVER)), axis=-1)


def _tvd(log_p, log_q, tokens, present):
    return 1.0 - jnp.sum(jnp.minimum(jnp.exp(log_p), jnp.exp(log_q)), axis=-1)


def _tvd_plus(log_p, log_q, tokens, present):
    q = jax.lax.stop_gradient(jnp.exp(log_q))
    reward = (log_p > log_q).astype(log_q.dtype)
    weight = jnp.where(present[..., None], q, 0.0)  # tokens as the drafter draws them
    total = jnp.maximum(jnp.sum(weight), 1e-6)
    mean = jnp.sum(weight * reward) / total
    spread = jnp.sqrt(jnp.sum(weight * (reward - mean) ** 2) / total)
    whitened = (reward - mean) / jnp.maximum(spread, 1e-6)
    return -jnp.sum(jax.lax.stop_gradient(q * whitened) * log_q, axis=-1)


_OF: dict[str, Callable] = {
    "cross_entropy": _cross_entropy,
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "tvd": _tvd,
    "tvd++": _tvd_plus,
}
assert set(_OF) == set(get_args(Divergence))
