"""Attention of a few queries over a long cache on TPUs.

The blocks of slots of a row follow one another, many heads at once, with a running
softmax in scratch memory. Blocks behind a row's last visible slot are neither fetched
nor worked on.
"""

from functools import partial

import einops
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from jaxspec.nn.kernels.filled import reach
from jaxspec.nn.kernels.precision import precision_of
from jaxspec.spec.dtypes import widest
from jaxspec.typing import Array, Bool, Float

# Added to masked scores, as in `nn.attention`.
_MASKED = -1e30
# Rows of a tile of 16-bit numbers, and lanes of any tile.
_LEAST, _LANES = 16, 128
# Bytes of the heads of a program; a TPU v5e lets it have 16 MiB.
_HELD = 2**23


def mosaic_attend(
    q: Float[Array, "R T H F"],
    k: Float[Array, "R K S F"],
    v: Float[Array, "R K S F"],
    mask: Bool[Array, "R T S"],
    *,
    block: int,
    interpret: bool = False,
) -> Float[Array, "R T D"]:
    """Softmax attention as `nn.attention.attend`, scores and softmax in float32.

    Dtypes meet as they do there.

    Args:
      q: queries, at most a few hundred a row.
      k: keys; `block` divides `S`.
      v: values.
      mask: who sees which slot.
      block: slots that are worked on at once.
      interpret: by Pallas's interpreter, for tests.
    """
    rows, length, heads, size = q.shape
    kv_heads, slots = k.shape[1:3]
    groups, fill = heads // kv_heads, -length % _LEAST
    padded = length + fill
    queries = groups * padded
    q = jnp.pad(q, ((0, 0), (0, fill), (0, 0), (0, 0)))
    q = einops.rearrange(q, "r t (k g) f -> r k (g t) f", k=kv_heads)
    seen = jnp.pad(mask, ((0, 0), (0, fill), (0, 0))).astype(jnp.int32)

    # Behind a row's reach the last block comes again, which fetches nothing.
    def fetched(r, j, reached):
        return jnp.minimum(j, jnp.maximum(reached[r] - 1, 0) // block)

    some = _heads_at_once(kv_heads, queries, size, block)
    whole = pl.BlockSpec(
        (1, some, queries, size), lambda r, h, j, reached: (r, h, 0, 0)
    )
    kv_spec = pl.BlockSpec(
        (1, some, block, size),
        lambda r, h, j, reached: (r, h, fetched(r, j, reached), 0),
    )
    mask_spec = pl.BlockSpec(
        (1, padded, block), lambda r, h, j, reached: (r, 0, fetched(r, j, reached))
    )
    stat = tpu.VMEM((some, queries, 1), jnp.float32)
    spec = tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(rows, kv_heads // some, slots // block),
        in_specs=[whole, kv_spec, kv_spec, mask_spec],
        out_specs=whole,
        scratch_shapes=[stat, stat, tpu.VMEM((some, queries, size), jnp.float32)],
    )
    wide = widest(q=q, k=k, v=v)
    kernel = partial(_kernel, block=block, groups=groups, wide=wide)
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=spec,
        interpret=interpret,
    )(reach(mask), q, k, v, seen)
    out = einops.rearrange(out, "r k (g t) f -> r t (k g f)", t=padded)
    return out[:, :length]


def _heads_at_once(heads: int, queries: int, size: int, block: int) -> int:
    """As many key/value heads as fit: queries, results, sums, scores; keys, values."""
    wide = -(-size // _LANES) * _LANES
    head = 4 * (queries * (4 * wide + 4 * block) + 4 * block * wide)
    fitting = (h for h in range(1, heads + 1) if heads % h == 0 and h * head <= _HELD)
    return max(fitting, default=1)


def _kernel(
    reached,
    q,
    k,
    v,
    seen,
    out,
    best,
    total,
    summed,
    *,
    block: int,
    groups: int,
    wide: jnp.dtype,
):
    """One block: joins its softmax to that of the blocks before it."""
    row, part = pl.program_id(0), pl.program_id(2)
    exact = precision_of(wide)

    @pl.when(part == 0)
    def _():
        best[...] = jnp.full(best.shape, _MASKED, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        summed[...] = jnp.zeros(summed.shape, jnp.float32)

    @pl.when(part * block < reached[row])
    def _():
        scores = jax.lax.dot_general(
            q[0].astype(wide),
            k[0].astype(wide),
            (((2,), (2,)), ((0,), (0,))),
            precision=exact,
            preferred_element_type=jnp.float32,
        )
        visible = jnp.concatenate([seen[0]] * groups, axis=0) > 0
        scores = jnp.where(visible[None], scores * q.shape[-1] ** -0.5, _MASKED)
        highest = jnp.maximum(best[...], jnp.max(scores, axis=-1, keepdims=True))
        weights, kept = jnp.exp(scores - highest), jnp.exp(best[...] - highest)
        values = jax.lax.dot_general(
            weights.astype(wide),
            v[0].astype(wide),
            (((2,), (1,)), ((0,), (0,))),
            precision=exact,
            preferred_element_type=jnp.float32,
        )
        best[...] = highest
        total[...] = kept * total[...] + jnp.sum(weights, axis=-1, keepdims=True)
        summed[...] = kept * summed[...] + values

    @pl.when(part == pl.num_programs(2) - 1)
    def _():
        # A row that sees nothing has a total of 0.
        out[0] = (summed[...] / jnp.maximum(total[...], 1e-30)).astype(out.dtype)
