"""Networks of Medusa's and Hydra's heads."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config.checks import positive, require
from jaxspec.nn.attention import Attention
from jaxspec.nn.layers import INIT, ZEROS, Linear, RMSNorm, SwiGLU, linear
from jaxspec.typing import Array, Bool, Float, Int


@dataclass(frozen=True)
class MedusaConfig:
    """Heads that each predict one of the next tokens (Medusa, Hydra).

    Attributes:
      heads: number of heads: tokens predicted ahead.
      width: `D`, equal to the target's.
      blocks: residual blocks of each head.
      sequential: whether a head reads the tokens drafted before its own (Hydra, arXiv
        2402.05109); otherwise it reads the feature alone (Medusa, arXiv 2401.10774).
      own_output: whether each head has its own output map `[D, V]`, as published;
        otherwise all share the target's, which saves `V D` parameters per head.
      output_bias: whether the heads' own output maps have biases (released Hydra).
      narrow_bias: whether the projection in Hydra's first block has a bias (released).
      prefix_heads: attention heads of the decoder layer before the heads (Hydra++); 0
        for no such layer.
      prefix_ffn_width: SwiGLU width of that layer.
      prefix_out_norm: whether a norm follows that layer (released Hydra++).
      norm_eps: epsilon of that layer's norms.
    """

    heads: int = 4
    width: int = 768
    blocks: int = 1
    sequential: bool = False
    own_output: bool = False
    output_bias: bool = False
    narrow_bias: bool = False
    prefix_heads: int = 0
    prefix_ffn_width: int = 2048
    prefix_out_norm: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self):
        positive(self, "heads", "width", "blocks", "prefix_ffn_width")
        require(self.own_output or not self.output_bias, "output_bias needs own_output")
        step = 4 * max(self.prefix_heads, 1)
        require(
            self.prefix_heads >= 0 and self.width % step == 0,
            f"prefix_heads={self.prefix_heads} must divide width={self.width} into "
            "head sizes that are multiples of 4",
        )


class ResidualBlock(nn.Module):
    """Residual block `x + silu(A x + b)` with `A` initialized to zero.

    Attributes:
      width: output width; the residual of a wider `x` is projected to it.
      bias: whether that projection has a bias.
    """

    width: int
    bias: bool

    @nn.compact
    def __call__(self, x):
        """Applies the block."""
        change = Linear((self.width,), True, ZEROS, name="change")(x)
        if x.shape[-1] != self.width:
            x = linear(self.width, "narrow", self.bias)(x)
        return x + nn.silu(change)


class HeadsNetwork(nn.Module):
    """All heads, and the optional decoder layer before them (Hydra++).

    Attributes:
      config: configuration of the heads.
      vocab_size: vocabulary size `V`.
    """

    config: MedusaConfig
    vocab_size: int

    def setup(self):
        """Builds the submodules."""
        c = self.config
        self.blocks = [
            [
                ResidualBlock(c.width, c.narrow_bias, name=f"head_{i}_block_{j}")
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
        """Applies the decoder layer to committed features (Hydra++)."""
        x = self.prefix_norm(h)
        out, cache = self.prefix_attention(x, angles, mask, cache, starts)
        h = h + out
        h = h + self.prefix_ffn(self.prefix_ffn_norm(h))
        return self.prefix_out_norm(h) if self.config.prefix_out_norm else h, cache

    def head(
        self,
        index: int,
        h: Float[Array, "... D"],
        path: Float[Array, "... M"] | None = None,
    ) -> Float[Array, "... D"]:
        """Hidden state of one head.

        Args:
          index: index of the head; head 0 predicts the first token after the root.
          h: [..., D], the target's feature that the root was sampled from.
          path: [..., M], concatenated embeddings of the `index + 1` tokens from the
            root on (Hydra); None for Medusa.
        """
        x = h if path is None else jnp.concatenate([h, path], axis=-1)
        for block in self.blocks[index]:
            x = block(x)
        return x

    def __call__(self, h, angles):
        """Uses every parameter once, for initialization."""
        if self.config.prefix_heads:
            h, _ = self.prefix(h, angles, jnp.ones((1, 1, 1), bool))
        for i in range(self.config.heads):
            path = jnp.concatenate([h] * (i + 1), -1)
            self.head(i, h, path if self.config.sequential else None)
        return h
