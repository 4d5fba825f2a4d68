"""Acceptance head of SpecDec++: predicts whether a drafted token is accepted."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.nn.layers import linear
from jaxspec.typing import Array, Bool, Float, Params


class _Network(nn.Module):
    layers: int
    shared: bool

    @nn.compact
    def __call__(self, h):
        """Returns two logits: rejected, accepted."""
        width = h.shape[-1]
        names = ["block" if self.shared else f"block_{i}" for i in range(self.layers)]
        blocks = {name: nn.Dense(width, name=name) for name in dict.fromkeys(names)}
        for name in names:
            h = h + nn.silu(blocks[name](h))
        return linear(2, "head", bias=True)(h)


@dataclass(frozen=True)
class AcceptanceHead:
    """Binary classifier of residual SiLU blocks over a drafter's hidden states.

    Its prediction is stored in `Draft.confidence`, which
    `ConfidenceCutoff(source="head")` reads (SpecDec++, arXiv 2405.19715).

    Attributes:
      width: width of the hidden states, `D`.
      layers: number of blocks; 3 in the paper.
      shared: whether all blocks share their parameters, as in the release.
    """

    width: int
    layers: int = 3
    shared: bool = True

    def __post_init__(self):
        if self.width < 1 or self.layers < 0:
            raise ConfigError(f"{self}: needs a positive width, and layers >= 0")

    def init_params(self, key: Array) -> Params:
        """Initializes float32 parameters at random; consumes `key`."""
        return self._network.init(key, jnp.zeros((1, self.width)))["params"]

    def confidence(
        self, params: Params, hidden: Float[Array, "... D"]
    ) -> Float[Array, "..."]:
        """Predicts acceptance probabilities, float32."""
        logits = self._network.apply({"params": params}, hidden)
        return jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)[..., 1]

    def loss(
        self,
        params: Params,
        hidden: Float[Array, "... D"],
        accept: Float[Array, "..."],
        use: Bool[Array, "..."] | None = None,
        reject_weight: float = 6.0,
    ) -> Float[Array, ""]:
        """Weighted cross-entropy to the acceptance probability `min(1, p / q)`.

        Rejections weigh more, so where a share `a` of the tokens is accepted, the best
        confidence is not `a` but the lower `a / (a + reject_weight * (1 - a))`.

        Args:
          params: parameters of the head.
          hidden: [..., D], hidden states of the drafter.
          accept: acceptance probability of each drafted token.
          use: mask of the positions that count; None for all. `accept` may be NaN at
            the others. The paper excludes positions where the target's own token
            replaced the drafted one.
          reject_weight: weight of rejections; 6 in the paper.
        """
        if use is not None:  # NaN times 0 would reach the gradient
            accept = jnp.where(use, accept, 0.0)
        logits = self._network.apply({"params": params}, hidden)
        log_chance = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
        rejected = reject_weight * (1.0 - accept) * log_chance[..., 0]
        losses = -(accept * log_chance[..., 1] + rejected)
        if use is None:
            return jnp.mean(losses)
        count = jnp.sum(use, dtype=losses.dtype)
        return jnp.sum(jnp.where(use, losses, 0.0)) / jnp.maximum(count, 1)

    @property
    def _network(self) -> _Network:
        return _Network(self.layers, self.shared)
