"""MaskGIT's VQ tokenizer, which maps images to codes and back."""

from dataclasses import dataclass

from jaxspec.config.one_d import MaskGITTokenizerConfig
from jaxspec.tokenizers.maskgit.networks import MaskGITNetworks
from jaxspec.tokenizers.vqgan.model import Tokenizer


@dataclass(frozen=True)
class MaskGITTokenizer(Tokenizer):
    """Pure functions of MaskGIT's tokenizer; static and hashable.

    Source: MaskGIT (arXiv 2202.04200). Codes are the nearest ones without
    normalization; images are clipped to [-1, 1].

    Attributes:
      config: sizes of the tokenizer.
    """

    config: MaskGITTokenizerConfig

    @property
    def networks(self) -> MaskGITNetworks:
        """Encoder and decoder."""
        return MaskGITNetworks(self.config)
