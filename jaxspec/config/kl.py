"""Frozen configuration of autoencoders with continuous latents."""

from dataclasses import dataclass

from jaxspec.config.checks import require
from jaxspec.config.models import TokenizerConfig
from jaxspec.config.orders import require_raster


@dataclass(frozen=True)
class KLTokenizerConfig:
    """An autoencoder whose latents are normal (arXiv 2112.10752, section 3.1).

    Attributes:
      networks: encoder and decoder; `code_dim` is the number of channels of the
        latents, `C`. There is no codebook: `codebook_size` is not used.
      scale: factor of latents, by which their standard deviation is about 1.
    """

    networks: TokenizerConfig = TokenizerConfig(
        latent_channels=16, code_dim=16, codebook_size=1, normalized="none"
    )
    scale: float = 0.2325

    def __post_init__(self):
        require(self.scale > 0, f"scale={self.scale} must be above 0")
        require_raster(self.networks.order)
        require(
            self.networks.quantizer == "vq",
            f"networks.quantizer={self.networks.quantizer!r}: latents are not "
            "quantized; leave it out",
        )

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.networks.image_size

    @property
    def grid(self) -> int:
        """Tokens along each side of an image."""
        return self.networks.grid

    @property
    def channels(self) -> int:
        """Size of a token, `C`."""
        return self.networks.code_dim

    @property
    def length(self) -> int:
        """Number of tokens of an image."""
        return self.networks.length
