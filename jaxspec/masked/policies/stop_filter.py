"""Tokens that a trained head takes for final."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxspec.core.numbers import whole
from jaxspec.errors import ConfigError
from jaxspec.masked.policy import Policy, View, check_inner, check_params
from jaxspec.typing import Array, Bool, Float, Params


@dataclass(frozen=True)
class StopFilter:
    """Keeps what a policy keeps, and tokens that will not change; a `Policy`.

    A small network reads the probabilities of the tokens of a block and predicts of
    each whether it equals the token of the last step; `train.stop_filter` trains it.
    It keeps tokens of all blocks, that of the paper those of the block that is being
    filled. Source: Learn2PD (arXiv 2509.25188).

    Parameters (`MaskedVariables.policy`): "in" [n, M], "in_bias" [M], "out" [M, n] and
    "out_bias" [n], for blocks of `n` tokens.

    Attributes:
      policy: policy of the tokens that are kept anyway.
      block: tokens of a block, `n`.
      threshold: probability above which a token is kept.

    Raises:
      ConfigError: a number is impossible, or the policy masks tokens again.
    """

    policy: Policy
    block: int = 32
    threshold: float = 0.96

    revises: ClassVar[bool] = False
    has_params: ClassVar[bool] = True

    def __post_init__(self):
        whole("block", self.block)
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold} is not from 0 to 1")
        check_inner(self)

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`.

        Raises:
          ConfigError: there are no parameters, or those of blocks of another size.
        """
        check_params(self, view.params)
        self._check(view.params)
        scores = self.scores(view.params, self.confidence(view))
        final = jax.nn.sigmoid(scores) > self.threshold
        # As many as the schedule has, whatever the filter has kept before.
        masked = jnp.sum(~view.known, axis=1, dtype=jnp.int32)
        left = jnp.maximum(masked - (view.before - view.left), 0)
        scheduled = replace(view, before=masked, left=left)
        return self.policy.reveal(scheduled) | final | view.known

    def _check(self, params: Params) -> None:
        """Raises `ConfigError` if these are no parameters of a head of such blocks."""
        n = self.block
        found = jax.tree.map(jnp.shape, params)
        width = found.get("in_bias") if isinstance(found, dict) else None
        width = width[:1] if isinstance(width, tuple) else ()
        shapes = {"in": (n, *width), "in_bias": width, "out": (*width, n)}
        if found != {**shapes, "out_bias": (n,)}:
            raise ConfigError(
                f"block={n} needs a head of blocks of {n} tokens, as `init` makes it"
            )

    def confidence(self, view: View) -> Float[Array, "B T"]:
        """Probabilities of the samples, which the network reads; 1 of known tokens."""
        return jnp.where(view.known, 1.0, jnp.exp(view.log_p))

    def scores(
        self, params: Params, confidence: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        """Log-odds that a token is final.

        Args:
          params: parameters.
          confidence: probabilities, see `confidence`.
        """
        batch, length = confidence.shape
        padded = jnp.pad(
            confidence, ((0, 0), (0, -length % self.block)), constant_values=1.0
        )
        x = padded.reshape(batch, -1, self.block)
        h = jax.nn.relu(x @ params["in"] + params["in_bias"][None, None])
        scores = h @ params["out"] + params["out_bias"][None, None]
        return scores.reshape(batch, -1)[:, :length]

    def init(self, key: Array, width: int = 64) -> Params:
        """Random float32 parameters of a network of a width; consumes `key`."""
        first, second = jax.random.split(key)
        normal = jax.random.normal
        return {
            "in": normal(first, (self.block, width), jnp.float32) * self.block**-0.5,
            "in_bias": jnp.zeros(width, jnp.float32),
            "out": normal(second, (width, self.block), jnp.float32) * width**-0.5,
            "out_bias": jnp.zeros(self.block, jnp.float32),
        }
