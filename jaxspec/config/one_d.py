"""Frozen configurations of MaskGIT's tokenizer and of one-dimensional ones."""

from dataclasses import dataclass
from typing import Literal

from jaxspec.config.checks import positive, require
from jaxspec.config.orders import Order, check_order, require_raster


@dataclass(frozen=True)
class MaskGITTokenizerConfig:
    """MaskGIT's VQGAN (arXiv 2202.04200), whose networks have no attention.

    Attributes:
      image_size: side of a square image in pixels.
      channels: width of the first level.
      multipliers: width of each level as a multiple of `channels`; each level but
        the last halves the side.
      blocks: residual blocks of each level, and in the middle.
      groups: number of groups of every GroupNorm.
      codebook_size: number of codebook entries, `V`.
      code_dim: width of a codebook entry, `C`.
      order: order of the tokens of an image, see `config.orders`.
    """

    image_size: int = 256
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    groups: int = 32
    codebook_size: int = 1024
    code_dim: int = 256
    order: Order = "raster"

    def __post_init__(self):
        check_order(self.order)
        positive(self, "channels", "blocks", "groups", "codebook_size", "code_dim")
        require(len(self.multipliers) >= 1, "multipliers must name at least one level")
        require(
            self.image_size % self.downsampling == 0 < self.image_size,
            f"image_size={self.image_size} must be a multiple of {self.downsampling}",
        )
        for m in self.multipliers:
            require(
                self.channels * m % self.groups == 0,
                f"groups={self.groups} must divide every level's width "
                f"({self.channels} x {m})",
            )

    @property
    def downsampling(self) -> int:
        """Pixels that a token covers along each side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Tokens along each side of an image."""
        return self.image_size // self.downsampling

    @property
    def length(self) -> int:
        """Number of tokens of an image."""
        return self.grid**2

    @property
    def normalized(self) -> Literal["none"]:
        """Use of codebook entries of unit length, see `TokenizerConfig`."""
        return "none"

    @property
    def quantizer(self) -> Literal["vq"]:
        """Way of quantization, see `TokenizerConfig`."""
        return "vq"


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer.

    Attributes:
      layers: `L`.
      width: `D`.
      heads: heads, `H`.
    """

    layers: int = 24
    width: int = 1024
    heads: int = 16

    def __post_init__(self):
        positive(self, "layers", "width", "heads")
        require(
            self.width % self.heads == 0,
            f"heads={self.heads} must divide width={self.width}",
        )


@dataclass(frozen=True)
class OneDTokenizerConfig:
    """A tokenizer whose tokens are a row, each about the whole image (TiTok).

    The defaults are those of TiTok-L-32 (arXiv 2406.07550).

    Attributes:
      image_size: side of a square image in pixels.
      patch_size: side in pixels of the patches that the encoder reads and the decoder
        makes.
      length: number of tokens of an image, `T`.
      codebook_size: number of codebook entries, `V`.
      code_dim: width of a codebook entry, `C`.
      normalized: whether codebook entries have unit length, for encoding and decoding.
      encoder: sizes of the encoder.
      decoder: sizes of the decoder.
      pixels: tokenizer whose codes the decoder predicts, one a patch; None where it
        makes pixels.
      mixed_order: whether the encoder's outputs are read as `[width, length]` where
        they lie as `[length, width]`, as TiTok's first releases do.
      prefixes: whether the decoder was trained on prefixes of the tokens too, so that
        each of them is an image (One-D-Piece, arXiv 2501.10064).
      text_length: number of vectors of a text that the decoder also reads, `P`; 0 for
        none (TA-TiTok, arXiv 2501.07730, has 77 of CLIP).
      text_width: width of these vectors; 0 for none.
    """

    image_size: int = 256
    patch_size: int = 16
    length: int = 32
    codebook_size: int = 4096
    code_dim: int = 12
    normalized: bool = True
    encoder: ViTConfig = ViTConfig()
    decoder: ViTConfig = ViTConfig()
    pixels: MaskGITTokenizerConfig | None = MaskGITTokenizerConfig()
    mixed_order: bool = True
    prefixes: bool = False
    text_length: int = 0
    text_width: int = 0

    def __post_init__(self):
        positive(self, "image_size", "patch_size", "length", "codebook_size")
        positive(self, "code_dim")
        require(
            min(self.text_length, self.text_width) >= 0
            and (self.text_length > 0) == (self.text_width > 0),
            f"text_length={self.text_length} and text_width={self.text_width}: give "
            "both for a decoder that reads a text, or neither",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"image_size={self.image_size} must be a multiple of "
            f"patch_size={self.patch_size}",
        )
        if self.pixels is not None:
            require_raster(self.pixels.order)
            made = self.pixels.image_size, self.pixels.grid
            require(
                made == (self.image_size, self.patches),
                f"pixels makes images of {made[0]} from a grid of {made[1]}, not of "
                f"{self.image_size} from one of {self.patches}",
            )

    @property
    def patches(self) -> int:
        """Patches along each side of an image."""
        return self.image_size // self.patch_size
