"""Acceptance of continuous drafts by ratios of densities (CSpD, arXiv 2411.11925)."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxspec.config.checks import number, whole
from jaxspec.core.mesh_sync import any_group, varying
from jaxspec.errors import ConfigError
from jaxspec.mar.head import ChainEnd
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int

Product = Literal["none", "paper", "code"]
Unresolved = Literal["target", "zero"]
# Number folded into the key of a sequence for the noise of acceptance.
_ACCEPTANCE = 0x80000006


@dataclass(frozen=True)
class DensityTest:
    """Acceptance of a drafted token, and the draw of another one; static.

    Drafter and target run their chains with the same first state and the same noise.
    Given the noise of all steps but the last, a draft `x` has the density `q(x)` of the
    drafter's last step, and what the target would sample has the density `p(x)` of its
    own. A draft is accepted with the probability `min(1, S p(x) / q(x))`; else a token
    is drawn from the density proportional to `max(0, S p - q)`, by drawing from `p` and
    keeping with the probability `max(0, 1 - q / (S p))`.

    With `S = 1` the result has the density `p` whatever the noise was, up to the bound
    on tries: if `d` is the distance of total variation between `p` and `q`, that of the
    result from `p` is `d (1 - d)^(tries + 1)` at most, below `1 / (e (tries + 1))`. The
    paper takes for `S` the product of ratios of the standard deviations of all steps
    but the last; it is the Jacobian determinant of the map between the chains and
    cancels in the derivation, so that results are exact only where the chains have
    equal standard deviations.

    Attributes:
      product: "none" (`S = 1`, ours), "paper", or "code" (the inverse of the paper's,
        as in the released code).
      flattening: number whose square divides the exponents of both densities in the
        acceptance; 42 in the released code.
      tries: largest number of draws after a rejection.
      unresolved: token that is taken if none of them was kept: "target", one more draw
        from `p`; or "zero", a token of zeros, as in the released code.
      noisy_end: whether the drafter's last step has noise. Without it (as in MAR and in
        the released code) a draft is the mean of `q`.

    Raises:
      ConfigError: a setting is impossible.
    """

    product: Product = "none"
    flattening: float = 1.0
    tries: int = 100
    unresolved: Unresolved = "target"
    noisy_end: bool = True

    def __post_init__(self):
        for name, known in (
            ("product", get_args(Product)),
            ("unresolved", get_args(Unresolved)),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}; choose one of {', '.join(known)}"
                )
        number(self, "above 0", lambda x: x > 0, "flattening")
        whole(self, 1, "tries")


RELEASED = DensityTest("code", 42.0, 100, "zero", noisy_end=False)


def accept_or_redraw(
    test: DensityTest,
    keys: BatchKeys,
    places: Int[Array, "B n"],
    drafts: Float[Array, "B n C"],
    drafter: ChainEnd,
    target: ChainEnd,
    wanted: Bool[Array, "B n"],
) -> tuple[Float[Array, "B n C"], Bool[Array, "B n"]]:
    """Accepts drafted tokens or draws others.

    Args:
      test: settings of the acceptance.
      keys: typed keys of the sequences.
      places: places of the tokens, by which noise is chosen.
      drafts: drafted tokens.
      drafter: last step of the drafter's chains.
      target: last step of the target's chains.
      wanted: tokens that are of interest; for others nothing is drawn.

    Returns:
      The tokens, and a mask of those that are the drafts.
    """
    # At temperature 0 there are no densities, and the target's own token is taken.
    dense = ((drafter.deviation > 0) & (target.deviation > 0)).all(axis=-1)
    q_deviation, p_deviation = (
        jnp.where(dense[..., None], x.deviation, 1.0) for x in (drafter, target)
    )
    log_product = jnp.where(
        dense, drafter.log_deviations - target.log_deviations, jnp.float32(0)
    )
    if test.product == "none":
        log_product = jnp.zeros_like(log_product)
    elif test.product == "code":
        log_product = -log_product

    def log_ratio(x, flattening):
        """Logarithm of `S p / q`."""
        squares = ((x - drafter.mean) / q_deviation) ** 2
        squares -= ((x - target.mean) / p_deviation) ** 2
        logs = jnp.log(q_deviation) - jnp.log(p_deviation)
        return log_product + jnp.sum(squares / (2 * flattening**2) + logs, axis=-1)

    chances, _ = _noise(keys, places, jnp.uint32(0), drafts.shape[-1])
    accepted = dense & (jnp.log(chances) < log_ratio(drafts, test.flattening))

    def unresolved(carry):
        _, resolved, count = carry
        return any_group(~jnp.all(resolved)) & (count < test.tries)

    def draw(carry):
        tokens, resolved, count = carry
        chances, noise = _noise(
            keys, places, (count + 1).astype(jnp.uint32), drafts.shape[-1]
        )
        found = target.mean + target.deviation * noise
        kept = chances < -jnp.expm1(-log_ratio(found, 1.0))
        now = kept & ~resolved
        tokens = jnp.where(now[..., None], found, tokens)
        return tokens, resolved | kept, count + 1

    _, last = _noise(keys, places, jnp.uint32(test.tries + 1), drafts.shape[-1])
    fallback = target.mean + target.deviation * last
    if test.unresolved == "zero":
        fallback = jnp.zeros_like(fallback)
    fallback = jnp.where(dense[..., None], fallback, target.mean)
    tokens = jnp.where(accepted[..., None], drafts, fallback)
    resolved = accepted | ~wanted | ~dense
    carry = varying((tokens, resolved, jnp.int32(0)), tokens)
    tokens, _, _ = jax.lax.while_loop(unresolved, draw, carry)
    return tokens, accepted


def _noise(keys, places, draw, channels):
    """Uniform [B, n] and normal [B, n, C] noise of one draw of each token."""

    def of_token(key, place):
        key = jax.random.fold_in(jax.random.fold_in(key, place), draw)
        chance, token = jax.random.split(key)
        chance = jax.random.uniform(chance, (), jnp.float32)
        return chance, jax.random.normal(token, (channels,), jnp.float32)

    def of_sequence(key, places):
        key = jax.random.fold_in(key, jnp.uint32(_ACCEPTANCE))
        return jax.vmap(lambda place: of_token(key, place))(places)

    return jax.vmap(of_sequence)(keys, places)
