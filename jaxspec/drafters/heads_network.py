"""The networks of Medusa's and Hydra's heads."""

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config import MedusaConfig
from jaxspec.nn.attention import Attention
from jaxspec.nn.layers import INIT, ZEROS, Linear, RMSNorm, SwiGLU, linear
from jaxspec.typing import Array, Bool, Float, Int


class _Block(nn.Module):
    """`x + silu(A x + b)`, `A` zero at first; a wider `x` is mapped to the width."""

    width: int
    bias: bool

    @nn.compact
    def __call__(self, x):
        change = Linear((self.width,), True, ZEROS, name="change")(x)
        if x.shape[-1] != self.width:
            x = linear(self.width, "narrow", self.bias)(x)
        return x + nn.silu(change)


class HeadsNetwork(nn.Module):
    """All heads, and the decoder layer that may stand before them (Hydra++)."""

    config: MedusaConfig
    vocab_size: int

    def setup(self):
        """Builds the submodules."""
        c = self.config
        self.blocks = [
            [
                _Block(c.width, c.narrow_bias, name=f"head_{i}_block_{j}")
                for j in range(c.blocks)
            ]
            for i in range(c.heads)
        ]
        if c.own_output:
            shape = (c.heads, c.width, self.vocab_size)
            self.output = self.param("output", INIT, shape)
            if c.output_bias:
                self.output_bias = self.param("output_bias", ZEROS, shape[::2])
        if c.prefix_heads:
            size = c.width // c.prefix_heads
            self.prefix_norm = RMSNorm(c.norm_eps)
            self.prefix_attention = Attention(c.prefix_heads, c.prefix_heads, size)
            self.prefix_ffn_norm = RMSNorm(c.norm_eps)
            self.prefix_ffn = SwiGLU(c.prefix_ffn_width)
            if c.prefix_out_norm:
                self.prefix_out_norm = RMSNorm(c.norm_eps)

    def prefix(
        self,
        h: Float[Array, "R T D"],
        angles: Float[Array, "R T f 2"],
        mask: Bool[Array, "R T S"],
        cache: tuple[Array, Array] | None = None,
        starts: Int[Array, "R"] | None = None,
    ) -> tuple[Float[Array, "R T D"], tuple[Array, Array] | None]:
        """One decoder layer over committed features."""
        x = self.prefix_norm(h)
        out, cache = self.prefix_attention(x, angles, mask, cache, starts)
        h = h + out
        h = h + self.prefix_ffn(self.prefix_ffn_norm(h))
        return self.prefix_out_norm(h) if self.config.prefix_out_norm else h, cache

    def head(
        self,
        place: int,
        h: Float[Array, "... D"],
        path: Float[Array, "... D"] | None = None,
    ) -> Float[Array, "... D"]:
        """Hidden state of the head for the token `place + 1` after the root.

        Args:
          place: 0 is the first token after the root.
          h: the feature that the root was drawn from.
          path: embeddings of the `place + 1` tokens from the root on, side by side
            (Hydra).
        """
        x = h if path is None else jnp.concatenate([h, path], axis=-1)
        for block in self.blocks[place]:
            x = block(x)
        return x

    def __call__(self, h, angles):
        """Touches every parameter once; for initialization."""
        if self.config.prefix_heads:
            h, _ = self.prefix(h, angles, jnp.ones((1, 1, 1), bool))
        for i in range(self.config.heads):
            path = jnp.concatenate([h] * (i + 1), -1)
            self.head(i, h, path if self.config.sequential else None)
        return h
