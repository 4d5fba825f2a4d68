"""Grouped-query attention with a boolean mask; caches are arguments and results."""

from collections.abc import Callable

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.nn.attention_kernel import kernel_attend
from jaxspec.nn.layers import linear
from jaxspec.nn.rope import rotate
from jaxspec.spec.cache import write
from jaxspec.typing import Array, Bool, Float, Int

# Added to masked scores; -inf would make a fully masked row NaN.
MASKED = -1e30
# More queries than this are worked on in blocks, so that scores stay small.
_MOST_QUERIES, _BLOCK = 512, 128


def attend(
    q: Float[Array, "R T H F"],
    k: Float[Array, "R K S F"],
    v: Float[Array, "R K S F"],
    mask: Bool[Array, "R T S"],
) -> Float[Array, "R T D"]:
    """Softmax attention; scores and softmax in float32; `D = H F`."""
    length = q.shape[1]
    if length > _MOST_QUERIES:
        fill = -length % _BLOCK
        blocks = einops.rearrange(
            jnp.pad(q, ((0, 0), (0, fill), (0, 0), (0, 0))),
            "r (b t) h f -> b r t h f",
            t=_BLOCK,
        )
        masks = einops.rearrange(
            jnp.pad(mask, ((0, 0), (0, fill), (0, 0))), "r (b t) s -> b r t s", t=_BLOCK
        )
        out = jax.lax.map(lambda x: attend(x[0], k, v, x[1]), (blocks, masks))
        return einops.rearrange(out, "b r t d -> r (b t) d")[:, :length]
    heads = k.shape[1]
    q = einops.rearrange(q, "r t (k g) f -> r k (g t) f", k=heads)
    scores = jnp.einsum("rkqf,rksf->rkqs", q, k, preferred_element_type=jnp.float32)
    scores = einops.rearrange(
        scores * q.shape[-1] ** -0.5, "r k (g t) s -> r k g t s", t=mask.shape[1]
    )
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED))
    weights = einops.rearrange(weights.astype(v.dtype), "r k g t s -> r k (g t) s")
    out = jnp.einsum("rkqs,rksf->rkqf", weights, v)
    return einops.rearrange(out, "r k (g t) f -> r t (k g f)", t=mask.shape[1])


def cudnn_attend(
    q: Float[Array, "R T H F"],
    k: Float[Array, "R K S F"],
    v: Float[Array, "R K S F"],
    mask: Bool[Array, "R T S"],
) -> Float[Array, "R T D"]:
    """The same by cuDNN's fused attention; bfloat16 on NVIDIA GPUs.

    Raises:
      ConfigError: the default device is no GPU, or the numbers are no half floats.
    """
    if jax.default_backend() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ConfigError("attention='cudnn' is for bfloat16 on NVIDIA GPUs; use 'xla'")
    out = jax.nn.dot_product_attention(
        q,
        jnp.swapaxes(k, 1, 2),
        jnp.swapaxes(v, 1, 2),
        mask=mask[:, None],
        implementation="cudnn",
    )
    return einops.rearrange(out, "r t h f -> r t (h f)")


# Ways to attend over a cache, by name. Passes without a cache, and those over more
# queries than the kernel is made for, take "xla" anyway.
ATTENTION = {"xla": attend, "pallas": kernel_attend, "cudnn": cudnn_attend}
_FEW_QUERIES = 128


class Attention(nn.Module):
    """Self-attention of one layer.

    Attributes:
      heads: `H`.
      kv_heads: `K`.
      head_dim: `F`.
      qkv_bias: biases in the fused query/key/value map.
      head_norm: makes the norms over query and key heads, by name; None for no norms.
      width: of the output; None for the input's.
      over_cache: how it attends over a cache, see `ATTENTION`.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    head_norm: Callable[[str], nn.Module] | None = None
    width: int | None = None
    over_cache: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R T D"],
        angles: Float[Array, "R T f 2"],
        mask: Bool[Array, "R T S"],
        cache: tuple[Array, Array] | None = None,
        starts: Int[Array, "R"] | None = None,
    ) -> tuple[Float[Array, "R T D"], tuple[Array, Array] | None]:
        """Attends over `x` alone, or over a cache into which `x` is written first."""
        h, kv, f = self.heads, self.kv_heads, self.head_dim
        fused = linear((h // kv + 2, kv, f), "qkv", bias=self.qkv_bias)(x)
        q = einops.rearrange(fused[:, :, :-2], "r t g k f -> r t (k g) f")
        k, v = fused[:, :, -2], fused[:, :, -1]
        if self.head_norm is not None:
            q, k = self.head_norm("q_norm")(q), self.head_norm("k_norm")(k)
        q, k = rotate(q, angles), rotate(k, angles)
        k, v = (einops.rearrange(t, "r t k f -> r k t f") for t in (k, v))
        if cache is not None:
            assert starts is not None
            k, v = write(cache[0], k, starts), write(cache[1], v, starts)
            cache = (k, v)
        few = cache is not None and x.shape[1] <= _FEW_QUERIES
        out = ATTENTION[self.over_cache if few else "xla"](q, k, v, mask)
        return linear(self.width or x.shape[-1], "out")(out), cache
