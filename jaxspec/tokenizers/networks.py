"""Convolutional encoder and decoder of tokenizers."""

import einops
import flax.linen as nn

from jaxspec.config import TokenizerConfig
from jaxspec.nn.conv import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Upsample,
    group_norm,
)
from jaxspec.typing import Array, Float


class _Middle(nn.Module):
    width: int
    groups: int

    @nn.compact
    def __call__(self, x):
        x = ResidualBlock(self.width, self.groups, name="0")(x)
        x = AttentionBlock(self.groups, name="1")(x)
        return ResidualBlock(self.width, self.groups, name="2")(x)


class _Level(nn.Module):
    """Residual blocks of one resolution, and the resampling to the next."""

    width: int
    groups: int
    blocks: int
    attention: bool
    resample: type[nn.Module] | None

    @nn.compact
    def __call__(self, x):
        for i in range(self.blocks):
            x = ResidualBlock(self.width, self.groups, name=f"res_{i}")(x)
            if self.attention:
                x = AttentionBlock(self.groups, name=f"attn_{i}")(x)
        if self.resample is not None:
            name = "downsample" if self.resample is Downsample else "upsample"
            x = self.resample(name=name)(x)
        return x


class Encoder(nn.Module):
    """Images to latents.

    Attributes:
      config: sizes; `latent_channels` are the channels of the result.
    """

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w 3"]) -> Float[Array, "B grid grid E"]:
        """Maps images to latents."""
        c = self.config
        last = len(c.multipliers) - 1
        p = c.patch_size
        x = einops.rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=p, j=p)
        x = nn.Conv(c.channels, (3, 3), name="conv_in")(x)
        for i, m in enumerate(c.multipliers):
            x = _Level(
                c.channels * m,
                c.groups,
                c.encoder_blocks,
                attention=i == last and c.attention == "lowest",
                resample=Downsample if i < last else None,
                name=f"conv_blocks_{i}",
            )(x)
        x = _Middle(x.shape[-1], c.groups, name="mid")(x)
        x = nn.silu(group_norm(c.groups, "norm_out")(x))
        return nn.Conv(c.latent_channels, (3, 3), name="conv_out")(x)


class Decoder(nn.Module):
    """Latents to images.

    Attributes:
      config: sizes.
    """

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B grid grid E"]) -> Float[Array, "B h w 3"]:
        """Maps latents to images."""
        c = self.config
        last = len(c.multipliers) - 1
        x = nn.Conv(c.channels * c.multipliers[-1], (3, 3), name="conv_in")(x)
        x = _Middle(x.shape[-1], c.groups, name="mid")(x)
        for i, m in enumerate(reversed(c.multipliers)):
            x = _Level(
                c.channels * m,
                c.groups,
                c.decoder_blocks,
                attention=i == 0 and c.attention == "lowest",
                resample=Upsample if i < last else None,
                name=f"conv_blocks_{i}",
            )(x)
        x = nn.silu(group_norm(c.groups, "norm_out")(x))
        p = c.patch_size
        x = nn.Conv(3 * p * p, (3, 3), name="conv_out")(x)
        return einops.rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=p, j=p)


class VQNetworks(nn.Module):
    """Encoder and decoder, with the convolutions around the quantizer.

    Attributes:
      config: sizes of the networks.
      kernel: side of the kernels around the quantizer.
    """

    config: TokenizerConfig
    kernel: int = 1

    def setup(self):
        """Makes the parts."""
        c, kernel = self.config, (self.kernel, self.kernel)
        self.encoder = Encoder(c)
        self.quant_conv = nn.Conv(c.code_dim, kernel)
        self.post_quant_conv = nn.Conv(c.latent_channels, kernel)
        self.decoder = Decoder(c)

    def encode(self, images: Float[Array, "B h w 3"]) -> Float[Array, "B grid grid C"]:
        """Maps images to continuous vectors, before quantization."""
        return self.quant_conv(self.encoder(images))

    def decode(self, vectors: Float[Array, "B grid grid C"]) -> Float[Array, "B h w 3"]:
        """Maps vectors, quantized or not, to images."""
        return self.decoder(self.post_quant_conv(vectors))

    def __call__(self, images: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Images as they are reconstructed without quantization."""
        return self.decode(self.encode(images))
