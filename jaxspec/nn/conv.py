"""Convolution blocks of the VQGAN family, channels last."""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.typing import Array, Float


def group_norm(groups: int, name: str) -> nn.GroupNorm:
    """GroupNorm with the VQGAN family's epsilon."""
    # The fast variance (E[x^2] - E[x]^2) cancels when a mean is far above its spread.
    return nn.GroupNorm(
        num_groups=groups, epsilon=1e-6, use_fast_variance=False, name=name
    )


class ResidualBlock(nn.Module):
    """Two normalized 3x3 convolutions with a shortcut.

    The shortcut is a 1x1 convolution where the widths differ, else the identity.

    Attributes:
      width: channels of the output.
      groups: groups of the norms.
    """

    width: int
    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w M"]:
        """Maps a feature map to one of `M = width` channels."""
        h = nn.silu(group_norm(self.groups, "norm1")(x))
        h = nn.Conv(self.width, (3, 3), name="conv1")(h)
        h = nn.silu(group_norm(self.groups, "norm2")(h))
        h = nn.Conv(self.width, (3, 3), name="conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), name="nin_shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map.

    Attributes:
      groups: groups of the norm.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Adds the output of attention to `x`."""
        width = x.shape[-1]
        h = group_norm(self.groups, "norm")(x)
        q, k, v = (nn.Conv(width, (1, 1), name=name)(h) for name in ("q", "k", "v"))
        q, k, v = (einops.rearrange(t, "b h w c -> b (h w) c") for t in (q, k, v))
        weights = jax.nn.softmax(
            jnp.einsum("btc,bsc->bts", q, k).astype(jnp.float32) * width**-0.5
        )
        h = jnp.einsum("bts,bsc->btc", weights.astype(v.dtype), v)
        h = h.reshape(x.shape)
        return x + nn.Conv(width, (1, 1), name="proj_out")(h)


class Downsample(nn.Module):
    """3x3 convolution with stride 2, after padding one zero right and below."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h//2 w//2 C"]:
        """Halves height and width."""
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        conv = nn.Conv(
            x.shape[-1], (3, 3), strides=(2, 2), padding="VALID", name="conv"
        )
        return conv(x)


class Upsample(nn.Module):
    """Nearest-neighbor upsampling by 2, then a 3x3 convolution."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B 2*h 2*w C"]:
        """Doubles height and width."""
        x = einops.repeat(x, "b h w c -> b (h i) (w j) c", i=2, j=2)
        return nn.Conv(x.shape[-1], (3, 3), name="conv")(x)
