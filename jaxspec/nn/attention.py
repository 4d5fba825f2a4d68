"""Grouped-query attention with a boolean mask.

KV caches are passed in and returned; nothing is kept in module variables.
"""

from collections.abc import Callable
from functools import partial

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.core.dtypes import widest
from jaxspec.core.kv_cache import write
from jaxspec.errors import ConfigError
from jaxspec.nn.kernels.cached_attention import kernel_step
from jaxspec.nn.layers import linear
from jaxspec.nn.rope import split_and_rotate
from jaxspec.typing import Array, Bool, Float, Int

# Score of a masked slot; -inf would give NaN for a query that may attend to nothing.
MASKED = -1e30
# More queries than this are attended block by block, to bound the memory of scores.
_MAX_QUERIES, _QUERY_BLOCK = 512, 128


def attend(
    q: Float[Array, "R T H F"],
    k: Float[Array, "R K S F"],
    v: Float[Array, "R K S F"],
    mask: Bool[Array, "R T S"],
) -> Float[Array, "R T D"]:
    """Softmax attention, with scores and softmax in float32; `D = H F`.

    If dtypes differ, the products are computed in the widest one, see `widest`. The
    result has the dtype of `q`.

    Raises:
      ConfigError: `q`, `k` or `v` is not floating-point.
    """
    compute_dtype, dtype = widest(q=q, k=k, v=v), q.dtype
    q, k, v = (x.astype(compute_dtype) for x in (q, k, v))
    return _attend_by_shape(q, k, v, mask).astype(dtype)


def _attend_by_shape(q, k, v, mask):
    length = q.shape[1]
    if length > _MAX_QUERIES:
        padding = -length % _QUERY_BLOCK
        blocks = einops.rearrange(
            jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0))),
            "r (b t) h f -> b r t h f",
            t=_QUERY_BLOCK,
        )
        masks = einops.rearrange(
            jnp.pad(mask, ((0, 0), (0, padding), (0, 0))),
            "r (b t) s -> b r t s",
            t=_QUERY_BLOCK,
        )
        out = jax.lax.map(lambda x: _attend_by_shape(x[0], k, v, x[1]), (blocks, masks))
        return einops.rearrange(out, "b r t d -> r (b t) d")[:, :length]
    if q.shape[1] * q.shape[2] > k.shape[1]:
        return _attend(q, k, v, mask)
    return jax.lax.platform_dependent(
        q, k, v, mask, tpu=_attend_duplicated, default=_attend
    )


def _attend_duplicated(q, k, v, mask):
    """Attention with its only query duplicated.

    XLA for TPU compiles a product with a single query per head to vector code. With two
    queries it uses the matrix unit.
    """
    q, mask = (jnp.concatenate([x, x], axis=1) for x in (q, mask))
    return _attend(q, k, v, mask)[:, :1]


def _attend(q, k, v, mask):
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
    """Softmax attention by cuDNN's fused kernel, on NVIDIA GPUs.

    Raises:
      ConfigError: the default device is not a GPU, the dtype is not bfloat16 or
        float16, or the dtypes differ.
    """
    if not q.dtype == k.dtype == v.dtype:
        raise ConfigError(
            f"attention='cudnn' takes arrays of one dtype, not q in {q.dtype}, k in "
            f"{k.dtype}, v in {v.dtype}; use 'xla'"
        )
    if jax.default_backend() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ConfigError(
            "attention='cudnn' needs bfloat16 or float16 on NVIDIA GPUs; use 'xla'"
        )
    out = jax.nn.dot_product_attention(
        q,
        jnp.swapaxes(k, 1, 2),
        jnp.swapaxes(v, 1, 2),
        mask=mask[:, None],
        implementation="cudnn",
    )
    return einops.rearrange(out, "r t h f -> r t (h f)")


def xla_step(
    fused: Float[Array, "R T g K F"],
    angles: Float[Array, "R T f 2"],
    mask: Bool[Array, "R T S"],
    cache: tuple[Array, Array],
    starts: Int[Array, "R"],
    attend: Callable[..., Array] = attend,
) -> tuple[Float[Array, "R T D"], tuple[Array, Array]]:
    """Attention over a KV cache, in separate XLA operations.

    Applies rotary embeddings, writes the new keys and values to the cache, and attends
    over the cache.

    Args:
      fused: output of the fused query/key/value projection: for each key/value head,
        its `g - 2 = H / K` queries, its key and its value.
      angles: cosines and sines of the tokens' positions, `f = F / 2`.
      mask: True where a query may attend to a slot.
      cache: keys and values `[R, K, S, F]`.
      starts: slot of the first of the `T` tokens, int32.
      attend: attention function with the signature of `attend`.

    Returns:
      Outputs in the dtype of `fused`, `D = H F`, and the cache with the new keys and
      values, see `write`.
    """
    q, k, v = split_and_rotate(fused, angles)
    k, v = write(cache[0], k, starts), write(cache[1], v, starts)
    return attend(q, k, v, mask), (k, v)


# Implementations of attention over a cache, by name. Passes over more than
# _MAX_KERNEL_QUERIES queries use "xla" in any case: the kernels are for few queries.
OVER_CACHE = {
    "xla": xla_step,
    "pallas": partial(kernel_step, fallback=xla_step),
    "cudnn": partial(xla_step, attend=cudnn_attend),
}
_MAX_KERNEL_QUERIES = 128


class Attention(nn.Module):
    """Self-attention of one layer.

    Attributes:
      heads: number of query heads, `H`.
      kv_heads: number of key/value heads, `K`.
      head_dim: size of a head, `F`.
      qkv_bias: whether the fused query/key/value projection has a bias.
      head_norm: constructor, by module name, of the norms of query and key heads; None
        for no norms.
      width: width of the output; None for that of the input.
      over_cache: implementation of attention over a cache, a key of `OVER_CACHE`.
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
        x: Float[Array, "R T M"],
        angles: Float[Array, "R T f 2"],
        mask: Bool[Array, "R T S"],
        cache: tuple[Array, Array] | None = None,
        starts: Int[Array, "R"] | None = None,
    ) -> tuple[Float[Array, "R T D"], tuple[Array, Array] | None]:
        """Attends over `x` or, with a cache, writes `x` to it and attends over it.

        Args:
          x: hidden states of any width `M`; EAGLE reads pairs of them.
          angles: cosines and sines of the tokens' positions, `f = F / 2`.
          mask: True where a query may attend; without a cache `S = T`.
          cache: keys and values `[R, K, S, F]`.
          starts: slot of the first token, int32; required with a cache.

        Returns:
          Outputs, and the updated cache or None.
        """
        h, kv, f = self.heads, self.kv_heads, self.head_dim
        fused = linear((h // kv + 2, kv, f), "qkv", bias=self.qkv_bias)(x)
        if self.head_norm is not None:
            q = einops.rearrange(fused[:, :, :-2], "r t g k f -> r t (k g) f")
            q, k = (
                self.head_norm("q_norm")(q),
                self.head_norm("k_norm")(fused[:, :, -2]),
            )
            q = einops.rearrange(q, "r t (k g) f -> r t g k f", k=kv)
            fused = jnp.concatenate([q, k[:, :, None], fused[:, :, -1:]], axis=2)
        if cache is None:
            out = attend(*split_and_rotate(fused, angles), mask)
        else:
            assert starts is not None
            few = x.shape[1] <= _MAX_KERNEL_QUERIES
            step = OVER_CACHE[self.over_cache if few else "xla"]
            out, cache = step(fused, angles, mask, cache, starts)
        return linear(self.width or x.shape[-1], "out")(out), cache
