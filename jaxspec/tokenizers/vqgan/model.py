"""VQ image tokenizer, which maps images to codes and back (LlamaGen VQ-16 and VQ-8)."""

from dataclasses import dataclass

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.config import TokenizerConfig
from jaxspec.errors import DataError
from jaxspec.nn.conv import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Upsample,
    group_norm,
)
from jaxspec.nn.vq import look_up, nearest_codes
from jaxspec.typing import Array, Float, Int, Params

PRESETS = {
    "vq-16": TokenizerConfig(),
    "vq-8": TokenizerConfig(multipliers=(1, 2, 2, 4)),
    # 64x64 images to 16x16 codes, with all convolutions at the resolution of the codes.
    "small-64": TokenizerConfig(
        image_size=64,
        patch_size=4,
        channels=96,
        multipliers=(1,),
        attention="middle",
        groups=8,
        latent_channels=96,
        codebook_size=1024,
    ),
    # 32x32 images to 16x16 codes.
    "small-32": TokenizerConfig(
        image_size=32,
        patch_size=2,
        channels=96,
        multipliers=(1,),
        attention="middle",
        groups=8,
        latent_channels=96,
        codebook_size=1024,
    ),
}


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


class _Encoder(nn.Module):
    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
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


class _Decoder(nn.Module):
    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
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


class _Networks(nn.Module):
    config: TokenizerConfig

    def setup(self):
        c = self.config
        self.encoder = _Encoder(c)
        self.quant_conv = nn.Conv(c.code_dim, (1, 1))
        self.post_quant_conv = nn.Conv(c.latent_channels, (1, 1))
        self.decoder = _Decoder(c)

    def encode(self, images):
        return self.quant_conv(self.encoder(images))

    def decode(self, vectors):
        return self.decoder(self.post_quant_conv(vectors))

    def __call__(self, images):
        return self.decode(self.encode(images))


@dataclass(frozen=True)
class Tokenizer:
    """Pure functions of a VQ tokenizer; static and hashable.

    Source: LlamaGen (arXiv 2406.06525), which l2-normalizes codebook entries both to
    choose codes and to decode them. Related tokenizers differ in their configuration.

    Attributes:
      config: sizes and kind of the tokenizer.
    """

    config: TokenizerConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        c = self.config
        networks_key, codebook_key = jax.random.split(key)
        image = jnp.zeros((1, c.image_size, c.image_size, 3))
        networks = _Networks(c).init(networks_key, image)["params"]
        shape = (c.codebook_size, c.code_dim)
        return {
            **networks,
            "codebook": jax.random.normal(codebook_key, shape, jnp.float32),
        }

    def embed(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Float[Array, "B grid grid C"]:
        """Maps images in [-1, 1] to continuous vectors, before quantization.

        Raises:
          DataError: the images have the wrong size.
        """
        side = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise DataError(
                f"images have shape {tuple(images.shape)}; this tokenizer takes "
                f"[B, {side}, {side}, 3] in [-1, 1]: resize or crop them first"
            )
        return _Networks(self.config).bind({"params": params}).encode(images)

    def encode(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Int[Array, "B T"]:
        """Maps images in [-1, 1] to codes, int32, in raster order; `T = grid ** 2`.

        Raises:
          DataError: the images have the wrong size.
        """
        codes = nearest_codes(
            params["codebook"],
            self.embed(params, images),
            normalized=self.config.normalized == "both",
        )
        return codes.reshape(images.shape[0], -1)

    def decode_vectors(
        self, params: Params, vectors: Float[Array, "B grid grid C"]
    ) -> Float[Array, "B h w 3"]:
        """Maps codebook entries on the grid to images, nominally in [-1, 1]."""
        return _Networks(self.config).bind({"params": params}).decode(vectors)

    def decode(
        self, params: Params, codes: Int[Array, "B T"]
    ) -> Float[Array, "B h w 3"]:
        """Maps codes in raster order to images, nominally in [-1, 1].

        Raises:
          DataError: there are not `grid ** 2` codes per image.
        """
        grid = self.config.grid
        if codes.ndim != 2 or codes.shape[1] != grid * grid:
            raise DataError(
                f"codes have shape {tuple(codes.shape)}; this tokenizer takes "
                f"[B, {grid * grid}] ({grid} x {grid} in raster order)"
            )
        vectors = look_up(
            params["codebook"], codes, normalized=self.config.normalized != "none"
        )
        return self.decode_vectors(
            params, vectors.reshape(-1, grid, grid, vectors.shape[-1])
        )


def parameter_count(config: TokenizerConfig) -> int:
    """Number of parameters, computed without allocating them."""
    shapes = jax.eval_shape(Tokenizer(config).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))
