"""Small convolutional image classifier, whose features give a Frechet distance."""

from dataclasses import dataclass

import einops
import flax.linen as nn
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.nn.conv import Downsample, ResidualBlock, group_norm
from jaxspec.typing import Array, Float, Params

GROUPS = 8


@dataclass(frozen=True)
class ClassifierConfig:
    """Configuration of a residual network over image patches.

    Attributes:
      image_size: side of a square image in pixels.
      classes: number of classes.
      patch_size: side in pixels of the patches that are folded into channels before the
        first convolution.
      widths: channels of each level, multiples of 8; each level halves height and
        width. The last is the width of the features.
    """

    image_size: int
    classes: int
    patch_size: int = 4
    widths: tuple[int, ...] = (64, 96, 64)

    def __post_init__(self):
        step = self.patch_size * 2 ** (len(self.widths) - 1)
        if self.image_size % step:
            raise ConfigError(f"image_size={self.image_size} is no multiple of {step}")
        if not self.widths or any(width % GROUPS for width in self.widths):
            raise ConfigError(f"widths={self.widths} must be multiples of {GROUPS}")
        if self.classes < 2:
            raise ConfigError(f"classes={self.classes} must be at least 2")


class _Network(nn.Module):
    config: ClassifierConfig

    @nn.compact
    def __call__(self, images):
        c = self.config
        x = einops.rearrange(
            images, "b (h i) (w j) c -> b h w (i j c)", i=c.patch_size, j=c.patch_size
        )
        x = nn.Conv(c.widths[0], (3, 3), name="conv_in")(x)
        for i, width in enumerate(c.widths):
            x = x if i == 0 else Downsample(name=f"down_{i}")(x)
            x = ResidualBlock(width, GROUPS, name=f"block_{i}")(x)
        x = nn.silu(group_norm(GROUPS, "norm")(x))
        features = jnp.mean(x, axis=(1, 2))
        return features, nn.Dense(c.classes, name="head")(features)


@dataclass(frozen=True)
class Classifier:
    """Pure functions of a classifier; static and hashable.

    Attributes:
      config: sizes of the network.
    """

    config: ClassifierConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        side = self.config.image_size
        return _Network(self.config).init(key, jnp.zeros((1, side, side, 3)))["params"]

    def __call__(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "B M"]]:
        """Features of images, and logits of the `M` classes.

        Args:
          params: parameters.
          images: images in [-1, 1].

        Returns:
          Float32 features, averaged over all positions, and float32 logits.
        """
        features, logits = _Network(self.config).bind({"params": params})(images)
        return features.astype(jnp.float32), logits.astype(jnp.float32)
