"""Multi-scale VQ tokenizer, which maps images to token maps that grow (VAR)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxspec.config import MultiScaleTokenizerConfig, TokenizerConfig
from jaxspec.errors import DataError
from jaxspec.tokenizers.checks import check_images
from jaxspec.tokenizers.multi_scale.scales import Scales, shared_convs
from jaxspec.tokenizers.networks import VQNetworks
from jaxspec.typing import Array, Float, Int, Params

_KERNEL = 3

PRESETS = {
    "var-256": MultiScaleTokenizerConfig(),
    # 64x64 images in 7 maps of 155 tokens, with all convolutions at 8x8.
    "scales-64": MultiScaleTokenizerConfig(
        TokenizerConfig(
            image_size=64,
            patch_size=4,
            channels=96,
            multipliers=(1, 2),
            encoder_blocks=1,
            decoder_blocks=2,
            attention="middle",
            groups=8,
            latent_channels=16,
            codebook_size=1024,
            code_dim=16,
            normalized="none",
        ),
        scales=(1, 2, 3, 4, 5, 6, 8),
    ),
}


@dataclass(frozen=True)
class MultiScaleTokenizer:
    """Pure functions of a multi-scale tokenizer; static and hashable.

    Source: VAR (arXiv 2404.02905, section 3.2).

    Attributes:
      config: sizes of the networks, and scales.
    """

    config: MultiScaleTokenizerConfig

    @property
    def scales(self) -> Scales:
        """Functions between token maps and features."""
        c = self.config
        convs = shared_convs(len(c.scales), c.residual_convs)
        return Scales(c.scales, convs, c.residual_share)

    @property
    def networks(self) -> VQNetworks:
        """Encoder and decoder."""
        return VQNetworks(self.config.networks, _KERNEL)

    def init(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        c = self.config
        networks_key, scales_key = jax.random.split(key)
        image = jnp.zeros((1, c.image_size, c.image_size, 3))
        networks = self.networks.init(networks_key, image)["params"]
        return {
            **networks,
            **self.scales.init(scales_key, c.codebook_size, c.code_dim),
        }

    def embed(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Float[Array, "B grid grid C"]:
        """Maps images in [-1, 1] to continuous features, before quantization.

        Raises:
          DataError: the images have the wrong size.
        """
        check_images(images, self.config.image_size)
        return self.networks.bind({"params": params}).encode(images)

    def encode(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Int[Array, "B T"]:
        """Maps images in [-1, 1] to tokens of all scales, int32, coarse to fine.

        Raises:
          DataError: the images have the wrong size.
        """
        return self.scales.quantize(params, self.embed(params, images))

    def decode_vectors(
        self, params: Params, features: Float[Array, "B grid grid C"]
    ) -> Float[Array, "B h w 3"]:
        """Maps features to images, nominally in [-1, 1]."""
        return self.networks.bind({"params": params}).decode(features)

    def decode(
        self, params: Params, codes: Int[Array, "B T"]
    ) -> Float[Array, "B h w 3"]:
        """Maps tokens of all scales, or of the first ones, to images.

        Args:
          params: parameters.
          codes: tokens, coarse to fine; those of the last scales may be left out.

        Returns:
          Images, nominally in [-1, 1].

        Raises:
          DataError: the tokens end within a scale.
        """
        scales = self.scales
        if codes.ndim != 2 or codes.shape[1] not in scales.ends:
            raise DataError(
                f"codes have shape {tuple(codes.shape)}; this tokenizer takes "
                f"[B, {self.config.length}], or those of its first scales: "
                f"{', '.join(map(str, scales.ends))}"
            )
        count = scales.ends.index(codes.shape[1]) + 1
        return self.decode_vectors(params, scales.features(params, codes, count))

    def decode_partial(
        self, params: Params, tokens: Int[Array, "B T"]
    ) -> Float[Array, "B h w 3"]:
        """Decodes images of which only the first scales exist.

        Args:
          params: parameters.
          tokens: tokens of all scales, -1 for those that do not exist yet.

        Returns:
          Images in [-1, 1]: those of the scales that are complete; gray without any.
        """
        scales, total = self.scales, jnp.zeros((), jnp.float32)
        for scale in range(len(scales)):
            codes = tokens[:, scales.tokens_of(scale)]
            known = jnp.all(codes >= 0, axis=1).reshape(-1, 1, 1, 1)
            added = scales.added(params, jnp.maximum(codes, 0), scale)
            total = total + jnp.where(known, added, 0.0)
        images = self.decode_vectors(params, total)
        return jnp.where((tokens[:, 0] >= 0).reshape(-1, 1, 1, 1), images, 0.0)
