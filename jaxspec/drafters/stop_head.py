"""SpecDec++'s acceptance head: how likely is a drafted token to be accepted?"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.nn.layers import linear
from jaxspec.typing import Array, Bool, Float, Params


class _Network(nn.Module):
    layers: int
    shared: bool

    @nn.compact
    def __call__(self, h):
        """Two logits: accepted, rejected."""
        width = h.shape[-1]
        names = ["block" if self.shared else f"block_{i}" for i in range(self.layers)]
        blocks = {name: nn.Dense(width, name=name) for name in dict.fromkeys(names)}
        for name in names:
            h = h + nn.silu(blocks[name](h))
        return linear(2, "head")(h)


@dataclass(frozen=True)
class StopHead:
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

    def init_params(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        return self._network.init(key, jnp.zeros((1, self.width)))["params"]

    def confidence(
        self, params: Params, hidden: Float[Array, "... D"]
    ) -> Float[Array, "..."]:
        """Predicted chance of acceptance, float32."""
        logits = self._network.apply({"params": params}, hidden)
        return jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)[..., 0]

    def loss(
        self,
        params: Params,
        hidden: Float[Array, "... D"],
        accept: Float[Array, "..."],
        use: Bool[Array, "..."] | None = None,
        reject_weight: float = 6.0,
    ) -> Float[Array, ""]:
        """Cross-entropy to the true acceptance `min(1, p / q)`, rejections weigh more.

        Args:
          params: of the head.
          hidden: the drafter's states.
          accept: acceptance probability of each drafted token.
          use: positions that count; the paper leaves out those where the target's own
            token was put in.
          reject_weight: 6 in the paper.
        """
        logits = self._network.apply({"params": params}, hidden)
        log_chance = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
        rejected = reject_weight * (1.0 - accept) * log_chance[..., 1]
        losses = -(accept * log_chance[..., 0] + rejected)
        if use is None:
            return jnp.mean(losses)
        return jnp.sum(jnp.where(use, losses, 0.0)) / jnp.maximum(jnp.sum(use), 1)

    @property
    def _network(self) -> _Network:
        return _Network(self.layers, self.shared)
