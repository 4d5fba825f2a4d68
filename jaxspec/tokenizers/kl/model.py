"""Autoencoder of images and continuous latents (KL-16, KL-8)."""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.config import KLTokenizerConfig
from jaxspec.errors import DataError
from jaxspec.tokenizers.checks import check_images
from jaxspec.tokenizers.networks import Decoder, Encoder
from jaxspec.typing import Array, Float, Params

# Bounds of the logarithm of the latents' variance.
_LEAST, _MOST = -30.0, 20.0


class _Networks(nn.Module):
    config: KLTokenizerConfig

    def setup(self):
        c = self.config.networks
        self.encoder = Encoder(replace(c, latent_channels=2 * c.latent_channels))
        self.quant_conv = nn.Conv(2 * c.code_dim, (1, 1))
        self.post_quant_conv = nn.Conv(c.latent_channels, (1, 1))
        self.decoder = Decoder(c)

    def encode(self, images):
        return self.quant_conv(self.encoder(images))

    def decode(self, latents):
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, images):
        return self.decode(self.encode(images)[..., : self.config.channels])


@dataclass(frozen=True)
class KLTokenizer:
    """Pure functions of an autoencoder; static and hashable.

    Tokens are latents in raster order, times `config.scale`. Sources: arXiv 2112.10752;
    KL-16 of MAR (arXiv 2406.11838).

    Attributes:
      config: sizes of the networks.
    """

    config: KLTokenizerConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        side = self.config.image_size
        image = jnp.zeros((1, side, side, 3))
        return _Networks(self.config).init(key, image)["params"]

    def posterior(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> tuple[Float[Array, "B T C"], Float[Array, "B T C"]]:
        """Means and standard deviations of the tokens of images in [-1, 1], float32.

        Raises:
          DataError: the images have the wrong size.
        """
        check_images(images, self.config.image_size)
        out = _Networks(self.config).bind({"params": params}).encode(images)
        out = out.reshape(len(images), self.config.length, -1).astype(jnp.float32)
        mean, log_variance = jnp.split(out, 2, axis=-1)
        deviation = jnp.exp(jnp.clip(log_variance, _LEAST, _MOST) / 2)
        return self.config.scale * mean, self.config.scale * deviation

    def encode(
        self,
        params: Params,
        images: Float[Array, "B h w 3"],
        key: Array | None = None,
    ) -> Float[Array, "B T C"]:
        """Maps images in [-1, 1] to tokens, float32.

        Args:
          params: parameters.
          images: images.
          key: key of the noise of the latents; None for their means.

        Raises:
          DataError: the images have the wrong size.
        """
        mean, deviation = self.posterior(params, images)
        if key is None:
            return mean
        return mean + deviation * jax.random.normal(key, mean.shape, jnp.float32)

    def decode(
        self, params: Params, tokens: Float[Array, "B T C"]
    ) -> Float[Array, "B h w 3"]:
        """Maps tokens to images, nominally in [-1, 1].

        Raises:
          DataError: the tokens have the wrong shape.
        """
        c = self.config
        if tokens.ndim != 3 or tokens.shape[1:] != (c.length, c.channels):
            raise DataError(
                f"tokens have shape {tuple(tokens.shape)}; this autoencoder takes "
                f"[B, {c.length}, {c.channels}]"
            )
        latents = tokens.reshape(len(tokens), c.grid, c.grid, c.channels) / c.scale
        return _Networks(c).bind({"params": params}).decode(latents)

    def decode_partial(
        self, params: Params, tokens: Float[Array, "B T C"]
    ) -> Float[Array, "B h w 3"]:
        """Decodes images of which some tokens are missing.

        Args:
          params: parameters.
          tokens: tokens, -inf for those that do not exist yet.

        Returns:
          Images in [-1, 1]: 0, gray, in the cells of missing tokens.
        """
        known = jnp.isfinite(tokens).all(axis=-1)
        images = self.decode(params, jnp.where(known[..., None], tokens, 0.0))
        side, cell = self.config.grid, self.config.networks.downsampling
        shown = known.reshape(len(tokens), side, side)
        shown = jnp.repeat(jnp.repeat(shown, cell, axis=1), cell, axis=2)
        return jnp.where(shown[..., None], images, 0.0)
