"""Frozen configuration of one-dimensional tokenizers whose decoder is a flow."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxspec.config.checks import positive, require
from jaxspec.config.kl import KLTokenizerConfig
from jaxspec.config.one_d import ViTConfig


@dataclass(frozen=True)
class FlowTokenizerConfig:
    """A row of tokens that condition a flow from noise to an image (FlexTok).

    The defaults are the networks of FlexTok d18-d18 (arXiv 2502.13967), over pixels; it
    has patches of 2 x 2 latents of an autoencoder. With several `groups` they condition
    it one after the other (D-AR, arXiv 2505.23660).

    Attributes:
      image_size: side of a square image in pixels.
      patch_size: side of the patches of pixels, or of latents.
      length: number of tokens of an image, `T`.
      levels: number of values of each channel of a token (FSQ, arXiv 2309.15505).
      encoder: sizes of the encoder.
      decoder: sizes of the flow's network.
      latents: autoencoder whose latents the networks see; None for pixels.
      token_modulation: whether tokens have shifts, scales and gates of their own in the
        layers of the flow, and not those of patches.
      time_scale: factor of the times from 0 to 1 before their sinusoids.
      groups: number of groups of tokens. The share of the flow that is made has read
        as large a share of the groups, rounded up; 1 for all from the start.
      steps: number of steps of the flow.
      guidance: scale of the guidance by a flow without tokens; 1 for none.
      momentum: factor of earlier differences in guidance (adaptive projected guidance,
        arXiv 2410.02416).
      most_change: largest norm of the difference; 0 for no bound.
      parallel: share of the difference along the guided prediction that is kept; 1
        with `momentum=0` and `most_change=0` is classifier-free guidance.
    """

    image_size: int = 256
    patch_size: int = 16
    length: int = 256
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    encoder: ViTConfig = ViTConfig(18, 1152, 18)
    decoder: ViTConfig = ViTConfig(18, 1152, 18)
    latents: KLTokenizerConfig | None = None
    token_modulation: bool = False
    time_scale: float = 1000.0
    groups: int = 1
    steps: int = 20
    guidance: float = 7.5
    momentum: float = -0.5
    most_change: float = 2.5
    parallel: float = 0.0

    def __post_init__(self):
        positive(self, "image_size", "patch_size", "length", "groups", "steps")
        require(
            len(self.levels) >= 1
            and all(type(count) is int and count >= 2 for count in self.levels),
            f"levels={self.levels}: each channel needs at least 2 values, in whole",
        )
        require(self.time_scale > 0, f"time_scale={self.time_scale} must be above 0")
        require(
            self.latents is None or self.latents.image_size == self.image_size,
            "latents are of images of another size",
        )
        require(
            self.side % self.patch_size == 0,
            f"patch_size={self.patch_size} must divide a side of {self.side}",
        )
        require(
            self.length % self.groups == 0 and self.steps % self.groups == 0,
            f"groups={self.groups} must divide length={self.length} and "
            f"steps={self.steps}",
        )
        require(
            1 <= self.guidance < math.inf
            and 0 <= self.most_change < math.inf
            and -1 < self.momentum < 1
            and math.isfinite(self.parallel),
            "guidance is at least 1, most_change at least 0, momentum between -1 and "
            "1, parallel any number",
        )
        for name in ("encoder", "decoder"):
            width = getattr(self, name).width
            require(width % 4 == 0, f"{name}.width={width} must be a multiple of 4")

    @property
    def side(self) -> int:
        """Side of what the networks see: pixels, or latents."""
        return self.latents.grid if self.latents else self.image_size

    @property
    def channels(self) -> int:
        """Channels of what the networks see."""
        return self.latents.channels if self.latents else 3

    @property
    def patches(self) -> int:
        """Patches along each side."""
        return self.side // self.patch_size

    @property
    def codebook_size(self) -> int:
        """Number of codes, `V`."""
        return math.prod(self.levels)

    @property
    def code_dim(self) -> int:
        """Channels of a token, `C`."""
        return len(self.levels)

    @property
    def prefixes(self) -> Literal[True]:
        """Whether each prefix of the tokens is an image."""
        return True

    @property
    def normalized(self) -> Literal[False]:
        """Whether codebook entries have unit length."""
        return False

    @property
    def quantizer(self) -> Literal["fsq"]:
        """Way of quantization, see `TokenizerConfig`."""
        return "fsq"
