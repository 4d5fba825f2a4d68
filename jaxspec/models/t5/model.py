"""T5 text encoder (arXiv 1910.10683), which encodes captions for LlamaGen."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import TextEncoderConfig
from jaxspec.models.transformer.prompts import Caption
from jaxspec.nn.attention import MASKED
from jaxspec.nn.layers import RMSNorm, linear
from jaxspec.typing import Array, Bool, Float, Int, Params


def relative_position_buckets(
    length: int, buckets: int, max_distance: int
) -> np.ndarray:
    """Bucket of the relative position of each key to each query, int32 `[T, T]`.

    The second half of the buckets is for keys after the query. In each half, the first
    buckets hold one distance each; the widths of the others grow geometrically.

    Args:
      length: number of positions, `T`.
      buckets: number of buckets.
      max_distance: distance from which on all keys share the last bucket.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # In float32 as in T5, so that distances on a boundary get the same bucket.
    far = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = exact + far / np.float32(np.log(max_distance / exact)) * (half - exact)
    far = np.minimum(far.astype(np.int32), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class _Layer(nn.Module):
    config: TextEncoderConfig

    @nn.compact
    def __call__(self, x, bias):
        c = self.config
        h = RMSNorm(c.norm_eps, name="attention_norm")(x)
        fused = linear((3, c.heads, c.head_dim), "qkv")(h)
        q, k, v = (fused[:, :, i] for i in range(3))
        # T5 does not divide scores by the root of the head size.
        scores = jnp.einsum("bthf,bshf->bhts", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores + bias).astype(v.dtype)
        h = jnp.einsum("bhts,bshf->bthf", weights, v)
        h = h.reshape(*x.shape[:2], c.heads * c.head_dim)
        x = x + linear(c.width, "out")(h)
        h = RMSNorm(c.norm_eps, name="ffn_norm")(x)
        h = linear((2, c.ffn_width), "gate_up")(h)
        h = nn.gelu(h[:, :, 0], approximate=True) * h[:, :, 1]
        return x + linear(c.width, "down")(h)


class _Encoder(nn.Module):
    config: TextEncoderConfig

    @nn.compact
    def __call__(self, ids, valid):
        c = self.config
        shape = (c.vocab_size, c.width)
        normal = nn.initializers.normal
        table = self.param("embedding", normal(1.0, jnp.float32), shape)
        biases = self.param("distances", normal(0.1, jnp.float32), (c.buckets, c.heads))
        buckets = relative_position_buckets(ids.shape[1], c.buckets, c.most_distance)
        bias = biases[buckets].transpose(2, 0, 1)[None].astype(jnp.float32)
        bias = bias + jnp.where(valid[:, None, None, :], 0.0, MASKED)
        x = table[ids]
        for i in range(c.layers):
            x = _Layer(c, name=f"layers_{i}")(x, bias)
        return RMSNorm(c.norm_eps, name="norm")(x)


@dataclass(frozen=True)
class TextEncoder:
    """Pure functions of a T5 encoder; static and hashable.

    The encoder has gated GELUs, as in T5 1.1 and Flan-T5.

    Attributes:
      config: sizes of the network.
    """

    config: TextEncoderConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        ids = jnp.zeros((1, 1), jnp.int32)
        return _Encoder(self.config).init(key, ids, ids == 0)["params"]

    def encode(
        self, params: Params, ids: Int[Array, "B P"], valid: Bool[Array, "B P"]
    ) -> Float[Array, "B P D"]:
        """Features of text tokens.

        Args:
          params: parameters.
          ids: token ids, int32.
          valid: False at padding, which is not attended to.
        """
        return _Encoder(self.config).bind({"params": params})(ids, valid)

    def caption(
        self, params: Params, ids: Int[Array, "B P"], valid: Bool[Array, "B P"]
    ) -> Caption:
        """Encoded captions with the padding moved to the left, as LlamaGen reads them.

        Args:
          params: parameters.
          ids: token ids, int32, padded on the right.
          valid: False at padding.
        """
        features = jnp.where(valid[..., None], self.encode(params, ids, valid), 0)
        length = ids.shape[1]
        shift = length - jnp.sum(valid, axis=1, keepdims=True)
        source = (jnp.arange(length)[None] - shift) % length
        features = jnp.take_along_axis(features, source[..., None], axis=1)
        return Caption(features, jnp.take_along_axis(valid, source, axis=1))
