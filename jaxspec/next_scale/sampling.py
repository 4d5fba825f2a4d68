"""Sampling of all tokens of a scale from the logits of a next-scale model."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.noise import position_noise
from jaxspec.core.sampling import Sampling, Step
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int

# VAR filters first. Its nucleus drops the least likely tokens up to a mass of 1 - p,
# which keeps the same tokens as the likeliest ones up to a mass of p.
VAR_ORDER: tuple[Step, ...] = ("top_k", "top_p", "temperature")
Guidance = Literal["ramp", "constant"]
# VAR's temperature of the mixture of codes: it falls from the first scale to the last.
_MIXTURE, _MIXTURE_FALL, _MIXTURE_LEAST = 0.27, 0.95, 0.005
# Tokens, their log-probabilities, and the sequences whose logits are neither NaN nor
# all -inf.
Samples = tuple[Int[Array, "B T"], Float[Array, "B T"], Bool[Array, "B"]]


@dataclass(frozen=True)
class ScaleSampling:
    """Settings of the sampling that depend on the scale; static.

    Attributes:
      count: number of scales.
      guidance: "ramp" raises the strength of guidance from none at the first scale to
        all at the last, `1 + (s - 1) k / (count - 1)` at scale `k` (VAR, whose own
        scale is `s - 1`); "constant" has `s` at each.
      guided: number of first scales that are guided; at later ones the unconditional
        branch is not computed. None for all. Lossy, as in SkipVAR (arXiv 2506.08908).
      order: logits processors in their order.
      temperatures: factor of the temperature of each scale; empty for 1. CoDe samples
        with 1.1 at seven scales, then with 1.
      smooth: whether maps add mixtures of codes, by a Gumbel softmax, to the features
        instead of the sampled codes (VAR's `more_smooth`, made for smoother images).
        `Generation.features` then has the image, which its tokens have not. Lossy.

    Raises:
      ConfigError: a setting is impossible.
    """

    count: int
    guidance: Guidance = "ramp"
    guided: int | None = None
    order: tuple[Step, ...] = VAR_ORDER
    temperatures: tuple[float, ...] = ()
    smooth: bool = False

    def __post_init__(self):
        known = get_args(Guidance)
        if self.guidance not in known:
            raise ConfigError(
                f"guidance={self.guidance!r}; choose one of {', '.join(known)}"
            )
        if self.guided is not None and self.guided not in range(self.count + 1):
            raise ConfigError(f"guided={self.guided} scales; choose 0 to {self.count}")
        some = self.temperatures
        if some and (len(some) != self.count or not all(0 < t < 1e6 for t in some)):
            raise ConfigError(
                f"temperatures={some} are not one factor above 0 for each of "
                f"{self.count} scales"
            )

    def at(self, sampling: Sampling, scale: int) -> Sampling:
        """Settings of one scale."""
        if self.guidance == "ramp":
            share = scale / (self.count - 1)
            ramped = 1 + (sampling.cfg_scale - 1) * share
            sampling = replace(sampling, cfg_scale=ramped)
        if self.temperatures:
            factor = self.temperatures[scale]
            sampling = replace(sampling, temperature=sampling.temperature * factor)
        return sampling

    def sample(
        self,
        logits: Float[Array, "R T V"],
        sampling: Sampling,
        keys: BatchKeys,
        scale: int,
        start: int,
    ) -> Samples:
        """Samples the tokens of a scale, each with the noise of its position.

        Args:
          logits: float32, logits of all branches, conditional ones first.
          sampling: sampling settings of the sequences.
          keys: typed keys.
          scale: scale of the tokens.
          start: position of the first token.

        Returns:
          Tokens, int32; their log-probabilities, float32; and the sequences whose
          logits are neither NaN nor all -inf.
        """
        logits, noise = self._processed(logits, sampling, keys, scale, start)
        tokens = jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        log_p = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        finite = jnp.all(jnp.isfinite(jnp.max(logits, axis=-1)), axis=-1)
        return tokens, log_p, finite

    def mixture(
        self,
        logits: Float[Array, "R T V"],
        sampling: Sampling,
        keys: BatchKeys,
        scale: int,
        start: int,
    ) -> Float[Array, "B T V"]:
        """Weights of codes by a Gumbel softmax, float32; arguments as for `sample`.

        Source: VAR's `more_smooth`: logits are sharpened by `1 + r`, and the softmax
        has the temperature `max(.27 (1 - .95 r), .005)`, where `r` grows from 0 at the
        first scale to 1 at the last. The noise is that of `sample`.
        """
        share = scale / (self.count - 1)
        logits, noise = self._processed(logits, sampling, keys, scale, start)
        heat = max(_MIXTURE * (1 - _MIXTURE_FALL * share), _MIXTURE_LEAST)
        return jax.nn.softmax((logits * (1 + share) + noise) / heat, axis=-1)

    def _processed(self, logits, sampling, keys, scale, start):
        """Guided and filtered logits, and Gumbel noise, both [B, T, V]."""
        settings = self.at(sampling, scale)
        batch, count = len(keys), logits.shape[1]
        positions = start + jnp.arange(count, dtype=jnp.int32)
        positions = jnp.broadcast_to(positions[None], (batch, count))
        logits = apply_cfg(logits.astype(jnp.float32), settings, positions)
        logits = process_logits(logits, settings, self.order)
        noise = position_noise(keys, positions, logits.shape[-1])
        greedy = (settings.temperature == 0)[:, None, None]
        return logits, jnp.where(greedy, 0.0, noise)
