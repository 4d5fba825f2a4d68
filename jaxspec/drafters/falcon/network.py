"""Configuration and Linen module of Falcon."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config.checks import even_head_sizes, positive
from jaxspec.nn.attention import Attention
from jaxspec.nn.layers import RMSNorm, SwiGLU
from jaxspec.typing import Array, Float


@dataclass(frozen=True)
class FalconConfig:
    """A feature-based drafter of several tokens per pass (Falcon, arXiv 2412.12639).

    Attributes:
      block: tokens per pass, `G`; 2 in the paper.
      width: `D`, equal to the target's.
      heads: query heads.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of the RMSNorm.
    """

    block: int = 2
    width: int = 1280
    heads: int = 20
    ffn_width: int = 3584
    norm_eps: float = 1e-6

    def __post_init__(self):
        positive(self, "block", "width", "heads", "ffn_width")
        even_head_sizes(self.heads, self.width)

    @property
    def num_kv_heads(self) -> int:
        """`K`, equal to `heads`."""
        return self.heads

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.width // self.heads


class FalconNetwork(nn.Module):
    """Two LSTM layers over each window of pairs, and a decoder layer over all pairs.

    Attributes:
      config: configuration of the drafter.
    """

    config: FalconConfig

    def setup(self):
        """Builds the submodules."""
        c = self.config
        self.cells = [nn.OptimizedLSTMCell(c.width, name=f"lstm_{i}") for i in (0, 1)]
        self.attention = Attention(c.heads, c.heads, c.head_size, name="attention")
        self.post_norm = RMSNorm(c.norm_eps)
        self.ffn = SwiGLU(c.ffn_width)

    def read(self, windows: Float[Array, "R T G M"]) -> Float[Array, "R T D"]:
        """Encodes each query's window of `G` pairs, its own pair the last."""
        x = [windows[..., i, :] for i in range(windows.shape[-2])]
        for cell in self.cells:
            zeros = jnp.zeros((*x[0].shape[:-1], self.config.width), x[0].dtype)
            carry = (zeros, zeros)
            out = []
            for pair in x:
                carry, h = cell(carry, pair)
                out.append(h)
            x = out
        return x[-1]

    def layer(self, u, angles, mask, cache=None, starts=None):
        """Predicts features from encoded windows; no norm before the attention."""
        out, cache = self.attention(u, angles, mask, cache, starts)
        h = u + out
        return h + self.ffn(self.post_norm(h)), cache

    def __call__(self, windows, angles):
        """Uses every parameter once, for initialization."""
        return self.layer(self.read(windows), angles, jnp.ones((1, 1, 1), bool))[0]


def windows_of(
    pairs: Float[Array, "R T M"], size: int
) -> Float[Array, "R windows G M"]:
    """Stacks all windows of `size` adjacent pairs; there are `T - size + 1`."""
    count = pairs.shape[1] - size + 1
    return jnp.stack([pairs[:, i : i + count] for i in range(size)], axis=2)
