"""T5's encoder (arXiv 1910.10683), as it reads captions for LlamaGen: Flan-T5-XL."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import TextEncoderConfig
from jaxspec.models.transformer import Caption
from jaxspec.nn.attention import MASKED
from jaxspec.nn.layers import RMSNorm, linear
from jaxspec.typing import Array, Bool, Float, Int, Params


def relative_buckets(length: int, buckets: int, most: int) -> np.ndarray:
    """Bucket of the distance from each query to each key, int32 `[T, S]`.

    Half of the buckets are for keys behind the query; of each half, one half counts
    single places, the other grows geometrically up to `most`.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    away = np.abs(distance)
    # In float32, as the original: whole powers must fall on the same side.
    far = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    far = exact + far / np.float32(np.log(most / exact)) * (half - exact)
    far = np.minimum(far.astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0) + np.where(away < exact, away, far)


class _Layer(nn.Module):
    config: TextEncoderConfig

    @nn.compact
    def __call__(self, x, bias):
        c = self.config
        wide = c.heads * c.head_dim
        h = RMSNorm(c.norm_eps, name="attention_norm")(x)
        fused = linear((3, c.heads, c.head_dim), "qkv")(h)
        q, k, v = (fused[:, :, i] for i in range(3))
        # T5 does not scale by the root of the head size; its weights are so small.
        scores = jnp.einsum("bthf,bshf->bhts", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores + bias).astype(v.dtype)
        h = jnp.einsum("bhts,bshf->bthf", weights, v).reshape(*x.shape[:2], wide)
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
        distances = self.param(
            "distances", normal(0.1, jnp.float32), (c.buckets, c.heads)
        )
        near = relative_buckets(ids.shape[1], c.buckets, c.most_distance)
        bias = distances[near].transpose(2, 0, 1)[None].astype(jnp.float32)
        bias = bias + jnp.where(valid[:, None, None, :], 0.0, MASKED)
        x = table[ids]
        for i in range(c.layers):
            x = _Layer(c, name=f"layers_{i}")(x, bias)
        return RMSNorm(c.norm_eps, name="norm")(x)


@dataclass(frozen=True)
class TextEncoder:
    """Pure functions of a T5 encoder with gated GELUs (1.1, Flan); static, hashable."""

    config: TextEncoderConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters; `key` is consumed."""
        ids = jnp.zeros((1, 1), jnp.int32)
        return _Encoder(self.config).init(key, ids, ids == 0)["params"]

    def encode(
        self, params: Params, ids: Int[Array, "B P"], valid: Bool[Array, "B P"]
    ) -> Float[Array, "B P D"]:
        """Features of tokens; `valid` is False at padding, which nobody sees."""
        return _Encoder(self.config).bind({"params": params})(ids, valid)

    def caption(
        self, params: Params, ids: Int[Array, "B P"], valid: Bool[Array, "B P"]
    ) -> Caption:
        """Captions as LlamaGen reads them: features moved right, padding before them.

        Args:
          params: parameters.
          ids: tokens, padded behind.
          valid: False at padding.
        """
        features = jnp.where(valid[..., None], self.encode(params, ids, valid), 0)
        length = ids.shape[1]
        shift = length - jnp.sum(valid, axis=1, keepdims=True)
        place = (jnp.arange(length)[None] - shift) % length
        features = jnp.take_along_axis(features, place[..., None], axis=1)
        return Caption(features, jnp.take_along_axis(valid, place, axis=1))
