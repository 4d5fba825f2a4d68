"""Layers of the next-scale transformer."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.config import NextScaleConfig
from jaxspec.models.next_scale.local import NearbyKeys
from jaxspec.models.next_scale.skipping import chosen, pivotal, restored
from jaxspec.nn.layers import (
    INIT,
    ZEROS,
    add_bias,
    head_scores,
    linear,
    scaled_product,
)
from jaxspec.nn.norms import layer_norm
from jaxspec.nn.quantize import SCALE
from jaxspec.nn.vq import l2_normalize

# Largest factor of a head's cosines, and the initial one.
_MOST_SCALE, _FIRST_SCALE = 100.0, 4.0


def modulated(x, scale, shift, eps):
    """Normalized `x`, scaled and shifted for each sequence."""
    one = jnp.ones((), scale.dtype)
    return layer_norm(x, eps) * (scale[:, None] + one) + shift[:, None]


class CosineAttention(nn.Module):
    """Attention by cosines with a learned factor for each head.

    Attributes:
      heads: number of heads, `H`.
    """

    heads: int

    @nn.compact
    def __call__(self, x, mask, cache, start, nearby: NearbyKeys | None = None):
        """Attends over `x` or, with a cache, writes `x` to it and attends over it.

        Args:
          x: hidden states [R, T, D].
          mask: bool [T, S], True where a query may attend; None for everywhere.
          cache: keys and values [R, H, S, F], or None.
          start: slot of the first token; static.
          nearby: slots that each block of tokens attends to, instead of a mask.
        """
        f = x.shape[-1] // self.heads
        fused = linear((3, self.heads, f), "qkv")(x)
        q_bias = self.param("q_bias", ZEROS, (x.shape[-1],)).reshape(1, -1, 1, f)
        v_bias = self.param("v_bias", ZEROS, (x.shape[-1],)).reshape(1, -1, 1, f)
        init = nn.initializers.constant(math.log(_FIRST_SCALE), jnp.float32)
        log_scale = self.param("log_scale", init, (self.heads,)).astype(jnp.float32)
        scale = jnp.exp(jnp.minimum(log_scale, math.log(_MOST_SCALE)))
        q, k, v = (jnp.swapaxes(fused[:, :, i], 1, 2) for i in range(3))
        q = l2_normalize(q + q_bias) * scale[None, :, None, None]
        k = l2_normalize(k).astype(x.dtype)
        v = v + v_bias
        if cache is not None:
            end = start + x.shape[1]
            at = (0, 0, start, 0)
            cache = tuple(
                jax.lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), at)
                for buffer, new in zip(cache, (k, v), strict=True)
            )
            k, v = (buffer[:, :, :end].astype(x.dtype) for buffer in cache)
        q = q.astype(x.dtype)
        if nearby is not None:  # [R, H, blocks, ., F]
            q, k, v = (
                q[:, :, nearby.queries],
                k[:, :, nearby.keys],
                v[:, :, nearby.keys],
            )
        scores = jnp.einsum(
            "rh...tf,rh...sf->rh...ts", q, k, preferred_element_type=jnp.float32
        )
        if mask is not None:
            scores = jnp.where(mask[None, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        out = jnp.einsum("rh...ts,rh...sf->rh...tf", weights, v)
        if nearby is not None:
            out = out.reshape(*out.shape[:2], -1, f)[:, :, nearby.order]
        out = jnp.swapaxes(out, 1, 2)
        out = out.reshape(*out.shape[:2], -1)
        return linear(x.shape[-1], "out", bias=True)(out), cache


class Block(nn.Module):
    """Attention and MLP with shifts, scales and gates from the condition.

    Attributes:
      config: sizes of the network.
    """

    config: NextScaleConfig

    @nn.compact
    def __call__(
        self,
        x,
        modulation,
        mask,
        cache,
        start,
        count=None,
        outputs=None,
        nearby=None,
    ):
        """Hidden states, the cache, and what both halves added; see `TokenSkipping`.

        Args:
          x: hidden states [R, T, D].
          modulation: input of shifts, scales and gates.
          mask: bool [T, S], see `CosineAttention`.
          cache: keys and values, see `CosineAttention`.
          start: slot of the first token; static.
          count: number of tokens that are computed; None for all.
          outputs: additions of both halves at a complete map; needed with `count`.
          nearby: slots that are attended to, see `CosineAttention`.
        """
        c = self.config
        if c.shared_modulation:
            modulation = add_bias(
                modulation, self.param("modulation", INIT, (6 * c.width,))
            )
        else:
            modulation = linear(6 * c.width, "modulation", bias=True)(modulation)
        # In this order: both gates, both scales, both shifts.
        gate, ffn_gate, scale, ffn_scale, shift, ffn_shift = jnp.split(
            modulation, 6, axis=-1
        )
        attention = CosineAttention(c.heads, name="attention")
        change, down = (
            linear(c.ffn_size, "change", bias=True),
            linear(c.width, "down", bias=True),
        )

        def attend(x):
            h = modulated(x, scale, shift, c.norm_eps)
            return attention(h, mask, cache, start, nearby)

        def feed_forward(x):
            h = modulated(x, ffn_scale, ffn_shift, c.norm_eps)
            return down(nn.gelu(change(h), approximate=True))

        if count is None or outputs is None:
            first, cache = attend(x)
            x = x + gate[:, None] * first
            second = feed_forward(x)
        else:
            places = pivotal(x, count)
            first, cache = attend(chosen(x, places))
            first = restored(first, places, outputs[0], x.shape[1])
            x = x + gate[:, None] * first
            places = pivotal(x, count)
            second = feed_forward(chosen(x, places))
            second = restored(second, places, outputs[1], x.shape[1])
        return x + ffn_gate[:, None] * second, cache, (first, second)


class Head(nn.Module):
    """Logits in float32, of a matrix that may be quantized.

    Attributes:
      size: size of the vocabulary, `V`.
    """

    size: int

    @nn.compact
    def __call__(self, x):
        """Logits [..., V] of hidden states [..., D]."""
        kernel = self.param("kernel", ZEROS, (x.shape[-1], self.size))
        bias = self.param("bias", ZEROS, (self.size,)).astype(jnp.float32)
        if self.has_variable("params", "kernel" + SCALE):
            scale = self.get_variable("params", "kernel" + SCALE)
            return add_bias(scaled_product(x, kernel, scale), bias)
        return add_bias(head_scores(kernel, x), bias)
