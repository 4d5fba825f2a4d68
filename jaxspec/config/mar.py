"""Frozen configuration of masked models over continuous tokens (MAR)."""

from dataclasses import dataclass
from typing import Literal

from jaxspec.config.checks import positive, require


@dataclass(frozen=True)
class MARConfig:
    """A masked encoder and decoder over latents, with a diffusion head per token.

    Source: MAR (arXiv 2406.11838).

    Attributes:
      channels: size of a token, `C`.
      grid: tokens along a side.
      encoder_layers: layers over the known tokens.
      decoder_layers: layers over all tokens.
      width: `D`.
      heads: heads, `H`.
      ffn_width: width of the hidden layers of the MLPs; None for `4 width`.
      buffer: number of positions before the tokens that hold the condition.
      classes: number of classes.
      head_layers: residual layers of the diffusion head.
      head_width: their width.
      diffusion_steps: steps of the diffusion that the head is trained for.
      bound: largest absolute value of a number of a token. In a chain, predictions of
        the token without noise are cut to it; None for no bound, as published.
      norm_eps: epsilon of every LayerNorm.
      condition: "class".
      condition_dropout: probability of the null condition, training only.
    """

    channels: int = 16
    grid: int = 16
    encoder_layers: int = 12
    decoder_layers: int = 12
    width: int = 768
    heads: int = 12
    ffn_width: int | None = None
    buffer: int = 64
    classes: int = 1000
    head_layers: int = 6
    head_width: int = 1024
    diffusion_steps: int = 1000
    bound: float | None = None
    norm_eps: float = 1e-6
    condition: Literal["class"] = "class"
    condition_dropout: float = 0.1

    def __post_init__(self):
        positive(self, "channels", "grid", "encoder_layers", "decoder_layers", "width")
        positive(self, "heads", "ffn_size", "buffer", "classes", "head_layers")
        positive(self, "head_width")
        require(
            self.diffusion_steps > 1,
            f"diffusion_steps={self.diffusion_steps} must be at least 2",
        )
        require(
            self.bound is None or self.bound > 0, f"bound={self.bound} must be above 0"
        )
        require(self.norm_eps > 0, f"norm_eps={self.norm_eps} must be above 0")
        require(
            self.condition == "class",
            f"condition={self.condition!r}; MAR reads classes",
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
    def sequence_length(self) -> int:
        """Number of tokens of an image, `T`."""
        return self.grid**2
