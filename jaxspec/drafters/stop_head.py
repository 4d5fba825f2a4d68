"""SpecDec++'s acceptance head: how likely is a drafted token to be accepted?"""

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
        """Two logits: rejected, accepted."""
        width = h.shape[-1]
        names = ["block" if self.shared else f"block_{i}" for i in range(self.layers)]
        blocks = {name: nn.Dense(width, name=name) for name in dict.fromkeys(names)}
        for name in names:
            h = h + nn.silu(blocks[name](h))
        return linear(2, "head", bias=True)(h)


@dataclass(frozen=True)
class AcceptanceHead:
    """Residual SiLU blocks over a drafter's hidden states, then two classes.

    Its prediction goes to `Draft.confidence`, where `ConfidenceCutoff("head")` reads it
    (SpecDec++, arXiv 2405.19715).

    Attributes:
      width: of the hidden states.
      layers: blocks; 3 in the paper.
      shared: one block applied again and again, as the release does.
    """

    width: int
    layers: int = 3
    shared: bool = True

    def __post_init__(self):
        if self.width < 1 or self.layers < 0:
            raise ConfigError(f"{self}: needs a positive width, and layers >= 0")

    def init_params(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        return self._network.init(key, jnp.zeros((1, self.width)))["params"]

    def confidence(
        self, params: Params, hidden: Float[Array, "... D"]
    ) -> Float[Array, "..."]:
        """Predicted chance of acceptance, float32."""
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
        """Cross-entropy to the true acceptance `min(1, p / q)`, rejections weigh more.

        So the best confidence where a share `a` is accepted is not `a` but the lower
        `a / (a + reject_weight * (1 - a))`.

        Args:
          params: of the head.
          hidden: the drafter's states.
          accept: acceptance probability of each drafted token.
          use: positions that count, all by default; `accept` may be anything at
            others. The paper leaves out those where the target's own token was put in.
          reject_weight: 6 in the paper.
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
