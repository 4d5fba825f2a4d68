"""Convolutional encoder and decoder of MaskGIT's tokenizer."""

import einops
import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config.one_d import MaskGITTokenizerConfig
from jaxspec.nn.conv import group_norm
from jaxspec.typing import Array, Float


class _Block(nn.Module):
    """Residual block, which does not add its input where the widths differ.

    There it adds a 1x1 convolution of its own output, as the released weights demand.
    """

    width: int
    groups: int

    @nn.compact
    def __call__(self, x):
        h = nn.silu(group_norm(self.groups, "norm1")(x))
        h = nn.Conv(self.width, (3, 3), use_bias=False, name="conv1")(h)
        h = nn.silu(group_norm(self.groups, "norm2")(h))
        h = nn.Conv(self.width, (3, 3), use_bias=False, name="conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), use_bias=False, name="nin_shortcut")(h)
        return x + h


class _Encoder(nn.Module):
    config: MaskGITTokenizerConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        x = nn.Conv(c.channels, (3, 3), use_bias=False, name="conv_in")(x)
        for i, m in enumerate(c.multipliers):
            for j in range(c.blocks):
                x = _Block(c.channels * m, c.groups, name=f"level_{i}_{j}")(x)
            if i < len(c.multipliers) - 1:
                x = einops.reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)
        for j in range(c.blocks):
            x = _Block(x.shape[-1], c.groups, name=f"mid_{j}")(x)
        x = nn.silu(group_norm(c.groups, "norm_out")(x))
        return nn.Conv(c.code_dim, (1, 1), name="conv_out")(x)


class _Decoder(nn.Module):
    config: MaskGITTokenizerConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        x = nn.Conv(c.channels * c.multipliers[-1], (3, 3), name="conv_in")(x)
        for j in range(c.blocks):
            x = _Block(x.shape[-1], c.groups, name=f"mid_{j}")(x)
        for i, m in reversed(list(enumerate(c.multipliers))):
            for j in range(c.blocks):
                x = _Block(c.channels * m, c.groups, name=f"level_{i}_{j}")(x)
            if i > 0:
                x = einops.repeat(x, "b h w c -> b (h i) (w j) c", i=2, j=2)
                x = nn.Conv(x.shape[-1], (3, 3), name=f"upsample_{i}")(x)
        x = nn.silu(group_norm(c.groups, "norm_out")(x))
        return nn.Conv(3, (3, 3), name="conv_out")(x)


class MaskGITNetworks(nn.Module):
    """Encoder and decoder of MaskGIT's tokenizer.

    Levels are numbered from the full resolution on, in both. Convolutions see pixels in
    [0, 1].

    Attributes:
      config: sizes of the networks.
    """

    config: MaskGITTokenizerConfig

    def setup(self):
        """Makes the parts."""
        self.encoder = _Encoder(self.config)
        self.decoder = _Decoder(self.config)

    def encode(self, images: Float[Array, "B h w 3"]) -> Float[Array, "B grid grid C"]:
        """Maps images in [-1, 1] to continuous vectors, before quantization."""
        return self.encoder((images + 1) / 2)

    def decode(self, vectors: Float[Array, "B grid grid C"]) -> Float[Array, "B h w 3"]:
        """Maps vectors, quantized or not, to images in [-1, 1]."""
        return 2 * jnp.clip(self.decoder(vectors), 0, 1) - 1

    def __call__(self, images: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Images as they are reconstructed without quantization."""
        return self.decode(self.encode(images))
