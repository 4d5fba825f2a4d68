"""Grouped-query attention with a boolean mask; caches are arguments and results."""

from collections.abc import Callable
from functools import partial

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.nn.kernels.cached_attention import kernel_step
from jaxspec.nn.layers import linear
from jaxspec.nn.rope import turned
from jaxspec.spec.cache import write
from jaxspec.spec.dtypes import widest
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
    """Softmax attention; scores and softmax in float32; `D = H F`.

    Arrays of several dtypes are multiplied in the widest of them, see `widest`; the
    result has the dtype of `q`.

    Raises:
      ConfigError: one of them is not floating-point.
    """
    wide, dtype = widest(q=q, k=k, v=v), q.dtype
    given = q.astype(wide), k.astype(wide), v.astype(wide)
    return _by_queries(*given, mask).astype(dtype)


def _by_queries(q, k, v, mask):
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
        out = jax.lax.map(lambda x: _by_queries(x[0], k, v, x[1]), (blocks, masks))
        return einops.rearrange(out, "b r t d -> r (b t) d")[:, :length]
    if q.shape[1] * q.shape[2] > k.shape[1]:
        return _attend(q, k, v, mask)
    return jax.lax.platform_dependent(q, k, v, mask, tpu=_attend_twice, default=_attend)


def _attend_twice(q, k, v, mask):
    """One query a head as two: a TPU takes products with one from its matrix units."""
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
    """The same by cuDNN's fused attention; bfloat16 on NVIDIA GPUs.

    Raises:
      ConfigError: the default device is no GPU, the numbers are no half floats, or
        of several dtypes.
    """
    if not q.dtype == k.dtype == v.dtype:
        raise ConfigError(
            f"attention='cudnn' takes arrays of one dtype, not q in {q.dtype}, k in "
            f"{k.dtype}, v in {v.dtype}; use 'xla'"
        )
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


def separate_step(
    fused: Float[Array, "R T g K F"],
    angles: Float[Array, "R T f 2"],
    mask: Bool[Array, "R T S"],
    cache: tuple[Array, Array],
    starts: Int[Array, "R"],
    attend: Callable[..., Array] = attend,
) -> tuple[Float[Array, "R T D"], tuple[Array, Array]]:
    """Turns queries and keys, writes keys and values to the cache, attends over it.

    Args:
      fused: `g = G + 2`: `G` queries of each key/value head, its key and its value.
      angles: cosines and sines of the rows' positions.
      mask: who sees which slot.
      cache: keys and values `[R, K, S, F]`.
      starts: slots of the first of the `T` tokens.
      attend: how.

    Returns:
      Outputs, `D = G K F`, of the dtype of `fused`, and the cache with the tokens in
      it, see `write`.
    """
    q, k, v = turned(fused, angles)
    k, v = write(cache[0], k, starts), write(cache[1], v, starts)
    return attend(q, k, v, mask), (k, v)


# Ways to attend over a cache, by name. Passes over more queries than the kernels are
# made for take "xla" anyway.
OVER_CACHE = {
    "xla": separate_step,
    "pallas": partial(kernel_step, otherwise=separate_step),
    "cudnn": partial(separate_step, attend=cudnn_attend),
}
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
      over_cache: how it attends over a cache, see `OVER_CACHE`.
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
        if self.head_norm is not None:
            q = einops.rearrange(fused[:, :, :-2], "r t g k f -> r t (k g) f")
            q, k = (
                self.head_norm("q_norm")(q),
                self.head_norm("k_norm")(fused[:, :, -2]),
            )
            q = einops.rearrange(q, "r t (k g) f -> r t g k f", k=kv)
            fused = jnp.concatenate([q, k[:, :, None], fused[:, :, -1:]], axis=2)
        if cache is None:
            out = attend(*turned(fused, angles), mask)
        else:
            assert starts is not None
            way = self.over_cache if x.shape[1] <= _FEW_QUERIES else "xla"
            out, cache = OVER_CACHE[way](fused, angles, mask, cache, starts)
        return linear(self.width or x.shape[-1], "out")(out), cache
