"""Small matcher of images and captions, trained by contrast (arXiv 2103.00020)."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.config import TextEncoderConfig
from jaxspec.config.checks import positive, require
from jaxspec.models.classifier.model import Classifier, ClassifierConfig
from jaxspec.models.t5.model import TextEncoder
from jaxspec.nn.vq import l2_normalize
from jaxspec.typing import Array, Bool, Float, Int, Params

# Upper limit of the scale of similarities, as in CLIP.
MOST_SCALE = 100.0


@dataclass(frozen=True)
class MatcherConfig:
    """Configuration of a matcher.

    Attributes:
      image_size: side of a square image in pixels.
      text: text encoder.
      patch_size: side in pixels of the patches folded into channels, see
        `ClassifierConfig`.
      widths: channels of each level of the image encoder, multiples of 8.
      width: width of the features in which both are compared, `E`.
    """

    image_size: int
    text: TextEncoderConfig
    patch_size: int = 4
    widths: tuple[int, ...] = (64, 96, 128)
    width: int = 128

    def __post_init__(self):
        positive(self, "width")
        require(self.image.classes == self.width, "width must be at least 2")

    @property
    def image(self) -> ClassifierConfig:
        """Image encoder: a classifier whose classes are the features."""
        return ClassifierConfig(
            self.image_size, self.width, self.patch_size, self.widths
        )


@dataclass(frozen=True)
class Matcher:
    """Pure functions of a matcher; static and hashable.

    Attributes:
      config: sizes of the networks.
    """

    config: MatcherConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        image_key, text_key, head_key = jax.random.split(key, 3)
        shape = self.config.text.width, self.config.width
        return {
            "image": Classifier(self.config.image).init(image_key),
            "text": TextEncoder(self.config.text).init(text_key),
            "text_head": nn.initializers.lecun_normal()(head_key, shape, jnp.float32),
            "log_scale": jnp.log(jnp.float32(10.0)),
        }

    def embed_images(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Float[Array, "B E"]:
        """Features of unit length of images in [-1, 1]."""
        _, features = Classifier(self.config.image)(params["image"], images)
        return l2_normalize(features)

    def embed_captions(
        self, params: Params, ids: Int[Array, "B P"]
    ) -> Float[Array, "B E"]:
        """Features of unit length of captions, with -1 after shorter ones."""
        valid: Bool[Array, "B P"] = ids >= 0
        encoder = TextEncoder(self.config.text)
        tokens = encoder.encode(params["text"], jnp.maximum(ids, 0), valid)
        tokens = jnp.where(valid[..., None], tokens, 0.0)
        mean = jnp.sum(tokens, axis=1) / jnp.sum(valid, axis=1, keepdims=True)
        return l2_normalize(mean @ params["text_head"])

    def scores(
        self,
        params: Params,
        images: Float[Array, "B h w 3"],
        ids: Int[Array, "b P"],
    ) -> Float[Array, "B b"]:
        """Scaled similarity of every image with every caption."""
        scale = jnp.minimum(jnp.exp(params["log_scale"]), MOST_SCALE)
        one, other = self.embed_images(params, images), self.embed_captions(params, ids)
        return scale * one @ other.T
