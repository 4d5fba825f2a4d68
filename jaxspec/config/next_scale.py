"""Frozen configurations of next-scale models (VAR) and their tokenizers."""

from dataclasses import dataclass
from typing import Literal

from jaxspec.config.checks import positive, require
from jaxspec.config.models import TokenizerConfig
from jaxspec.config.orders import require_raster

# Sides of the token maps of images of 256 and of 512 pixels (arXiv 2404.02905).
SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def check_scales(scales: tuple[int, ...]) -> None:
    """Raises `ConfigError` unless sides grow from 1."""
    whole = all(isinstance(side, int) for side in scales)
    rising = whole and all(a < b for a, b in zip(scales, scales[1:], strict=False))
    require(
        len(scales) > 1 and scales[0] == 1 and rising,
        f"scales={scales} must be at least two growing sides, the first of them 1",
    )


@dataclass(frozen=True)
class MultiScaleTokenizerConfig:
    """A VQ tokenizer of token maps that grow (arXiv 2404.02905, section 3.2).

    Attributes:
      networks: encoder, decoder and codebook. Codes are the nearest ones without
        normalization, and the maps around the quantizer are 3x3 convolutions,
        whatever its `normalized` is.
      scales: sides of the token maps; the last is the grid of the networks.
      residual_convs: convolutions after the interpolation of a map, each shared by
        neighboring scales.
      residual_share: share of their output in what a map adds.
    """

    networks: TokenizerConfig = TokenizerConfig(
        channels=160,
        latent_channels=32,
        codebook_size=4096,
        code_dim=32,
        normalized="none",
    )
    scales: tuple[int, ...] = SCALES_256
    residual_convs: int = 4
    residual_share: float = 0.5

    def __post_init__(self):
        check_scales(self.scales)
        positive(self, "residual_convs")
        require_raster(self.networks.order)
        require(
            self.scales[-1] == self.networks.grid,
            f"the last of scales={self.scales} must be the grid of the networks, "
            f"{self.networks.grid}",
        )
        require(
            (self.networks.normalized, self.networks.quantizer) == ("none", "vq"),
            "networks must have normalized='none' and quantizer='vq': codes of scales "
            "have any length",
        )
        require(
            0 <= self.residual_share <= 1,
            f"residual_share={self.residual_share} must be 0 to 1",
        )

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.networks.image_size

    @property
    def codebook_size(self) -> int:
        """Number of codebook entries, `V`."""
        return self.networks.codebook_size

    @property
    def code_dim(self) -> int:
        """Width of a codebook entry, `C`."""
        return self.networks.code_dim

    @property
    def grid(self) -> int:
        """Side of the last token map."""
        return self.scales[-1]

    @property
    def length(self) -> int:
        """Number of tokens of an image, of all scales."""
        return sum(side * side for side in self.scales)


@dataclass(frozen=True)
class NextScaleConfig:
    """A transformer that predicts whole token maps, coarse to fine (VAR, HMAR).

    Attributes:
      vocab_size: `V`.
      code_dim: width of the codebook entries that it reads, `C`.
      layers: `L`.
      width: `D`.
      heads: heads, `H`.
      ffn_width: width of the hidden layers of the MLPs; None for `4 width`.
      scales: sides of the token maps.
      classes: number of classes; id `classes` is the null class of guidance.
      attends: "earlier": tokens attend to their own map and all earlier ones (VAR);
        "own": to their own map alone, so that no cache is needed (HMAR).
      mask_layers: number of last layers, and an output layer, that exist a second
        time, to refine a map of which some tokens are masked (HMAR); 0 for none.
      shared_modulation: whether one linear layer makes shifts, scales and gates of all
        layers (VAR-d36-s), with an offset for each.
      norm_eps: epsilon of every LayerNorm.
      condition: "class".
      condition_dropout: probability of the null condition, training only.
    """

    vocab_size: int = 4096
    code_dim: int = 32
    layers: int = 16
    width: int = 1024
    heads: int = 16
    ffn_width: int | None = None
    scales: tuple[int, ...] = SCALES_256
    classes: int = 1000
    attends: Literal["earlier", "own"] = "earlier"
    mask_layers: int = 0
    shared_modulation: bool = False
    norm_eps: float = 1e-6
    condition: Literal["class"] = "class"
    condition_dropout: float = 0.1

    def __post_init__(self):
        check_scales(self.scales)
        positive(self, "vocab_size", "code_dim", "layers", "width", "heads", "classes")
        positive(self, "ffn_size")
        require(
            self.attends in ("earlier", "own"),
            f"attends={self.attends!r}; choose 'earlier' or 'own'",
        )
        require(
            0 <= self.mask_layers <= self.layers,
            f"mask_layers={self.mask_layers} must be 0 to layers={self.layers}",
        )
        require(
            not self.mask_layers or self.attends == "own",
            f"mask_layers={self.mask_layers} needs attends='own': a map is refined "
            "from itself alone",
        )
        require(self.norm_eps > 0, f"norm_eps={self.norm_eps} must be above 0")
        require(
            self.condition == "class",
            f"condition={self.condition!r}; next-scale models read classes",
        )
        require(
            0 <= self.condition_dropout < 1,
            f"condition_dropout={self.condition_dropout} must be 0 to below 1",
        )
        require(
            self.width % self.heads == 0,
            f"heads={self.heads} must divide width={self.width}",
        )

    @property
    def ffn_size(self) -> int:
        """Width of the hidden layer of an MLP."""
        return 4 * self.width if self.ffn_width is None else self.ffn_width

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.width // self.heads

    @property
    def grid(self) -> int:
        """Side of the last token map."""
        return self.scales[-1]

    @property
    def sequence_length(self) -> int:
        """Number of tokens of an image, of all scales."""
        return sum(side * side for side in self.scales)

    @property
    def prefix_length(self) -> int:
        """Number of condition positions before the first token: none."""
        return 0
