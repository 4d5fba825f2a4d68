"""Transformer layer without causality."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.nn.layers import linear
from jaxspec.nn.norms import LayerNorm
from jaxspec.typing import Array, Bool, Float


class ViTLayer(nn.Module):
    """Attention and an MLP, each after a LayerNorm (arXiv 2010.11929).

    Attributes:
      heads: number of heads, `H`.
      ffn_width: width of the hidden layer of the MLP.
      norm_eps: epsilon of both norms.
    """

    heads: int
    ffn_width: int
    norm_eps: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "R T D"], seen: Bool[Array, "R T"] | None = None
    ) -> Float[Array, "R T D"]:
        """Hidden states after the layer.

        Args:
          x: hidden states.
          seen: tokens that others attend to; None for all.
        """
        width = x.shape[-1]
        size = width // self.heads
        h = LayerNorm(self.norm_eps, name="attention_norm")(x)
        fused = linear((3, self.heads, size), "qkv", bias=True)(h)
        q, k, v = (fused[:, :, i] for i in range(3))
        scores = jnp.einsum("rthf,rshf->rhts", q, k, preferred_element_type=jnp.float32)
        scores = scores / size**0.5
        if seen is not None:
            scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        h = jnp.einsum("rhts,rshf->rthf", weights, v).reshape(x.shape)
        x = x + linear(width, "out", bias=True)(h)
        h = LayerNorm(self.norm_eps, name="ffn_norm")(x)
        change = linear(self.ffn_width, "change", bias=True)(h)
        h = nn.gelu(change, approximate=False)
        return x + linear(width, "down", bias=True)(h)
