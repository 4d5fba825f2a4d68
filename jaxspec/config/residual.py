"""Frozen configuration of tokenizers with several tokens a cell."""

from dataclasses import dataclass
from typing import Literal

from jaxspec.config.checks import positive, require
from jaxspec.config.models import TokenizerConfig
from jaxspec.config.orders import require_raster


@dataclass(frozen=True)
class ResidualTokenizerConfig:
    """A VQ tokenizer whose cells have several tokens, coarse to fine.

    Source: residual quantization (RQ-VAE, arXiv 2203.01941). Each depth has a codebook
    of its own (there all share one), so that a token's depth follows from its number.

    Attributes:
      networks: encoder and decoder; its `codebook_size` is that of one depth, and its
        codes have any length: `normalized="none"`.
      depth: tokens of a cell.
    """

    networks: TokenizerConfig = TokenizerConfig(normalized="none")
    depth: int = 4

    def __post_init__(self):
        positive(self, "depth")
        require_raster(self.networks.order)
        require(
            (self.networks.normalized, self.networks.quantizer) == ("none", "vq"),
            "networks must have normalized='none' and quantizer='vq': codes of "
            "residuals have any length",
        )

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.networks.image_size

    @property
    def codebook_size(self) -> int:
        """Number of codebook entries of all depths."""
        return self.depth * self.networks.codebook_size

    @property
    def code_dim(self) -> int:
        """Width of a codebook entry, `C`."""
        return self.networks.code_dim

    @property
    def grid(self) -> int:
        """Cells along each side of an image."""
        return self.networks.grid

    @property
    def length(self) -> int:
        """Number of tokens of an image."""
        return self.grid**2 * self.depth

    @property
    def quantizer(self) -> Literal["vq"]:
        """Way of quantization, see `TokenizerConfig`."""
        return "vq"
