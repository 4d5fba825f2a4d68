"""Attention of few queries over a long KV cache, as a Pallas kernel for TPUs.

The grid runs over sequences, groups of key/value heads and, innermost, blocks of cache
slots. A running softmax is kept in scratch memory from block to block. Blocks after the
last visible slot of a sequence are neither fetched nor computed.
"""

from functools import partial

import einops
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from jaxspec.core.dtypes import widest
from jaxspec.nn.kernels.filled import visible_length
from jaxspec.nn.kernels.precision import precision_of
from jaxspec.typing import Array, Bool, Float

# Score of a masked slot, as in `nn.attention`.
_MASKED = -1e30
# Sublanes of a tile of 16-bit numbers, and lanes of any tile.
_SUBLANES, _LANES = 16, 128
# Bytes of fast memory for the heads of one program; a TPU v5e allows 16 MiB in all.
_MAX_BYTES = 2**23


def mosaic_attend(
    q: Float[Array, "R T H F"],
    k: Float[Array, "R K S F"],
    v: Float[Array, "R K S F"],
    mask: Bool[Array, "R T S"],
    *,
    block: int,
    interpret: bool = False,
) -> Float[Array, "R T D"]:
    """Softmax attention that computes the same as `nn.attention.attend`.

    Scores and softmax are in float32; different dtypes are promoted as there.

    Args:
      q: queries, at most a few hundred per sequence.
      k: keys; `S` must be a multiple of `block`.
      v: values.
      mask: True where a query may attend to a slot.
      block: slots per grid step.
      interpret: whether to interpret the kernel, for tests.

    Returns:
      Outputs in the dtype of `q`, `D = H F`.
    """
    batch, length, heads, size = q.shape
    kv_heads, slots = k.shape[1:3]
    groups, padding = heads // kv_heads, -length % _SUBLANES
    padded = length + padding
    queries = groups * padded
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    q = einops.rearrange(q, "r t (k g) f -> r k (g t) f", k=kv_heads)
    padded_mask = jnp.pad(mask, ((0, 0), (0, padding), (0, 0))).astype(jnp.int32)

    # After the last visible block its index is repeated: Pallas fetches nothing new.
    def block_index(r, j, lengths):
        return jnp.minimum(j, jnp.maximum(lengths[r] - 1, 0) // block)

    program_heads = _heads_per_program(kv_heads, queries, size, block)
    query_spec = pl.BlockSpec(
        (1, program_heads, queries, size), lambda r, h, j, lengths: (r, h, 0, 0)
    )
    kv_spec = pl.BlockSpec(
        (1, program_heads, block, size),
        lambda r, h, j, lengths: (r, h, block_index(r, j, lengths), 0),
    )
    mask_spec = pl.BlockSpec(
        (1, padded, block), lambda r, h, j, lengths: (r, 0, block_index(r, j, lengths))
    )
    statistic = tpu.VMEM((program_heads, queries, 1), jnp.float32)
    accumulator = tpu.VMEM((program_heads, queries, size), jnp.float32)
    spec = tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(batch, kv_heads // program_heads, slots // block),
        in_specs=[query_spec, kv_spec, kv_spec, mask_spec],
        out_specs=query_spec,
        scratch_shapes=[statistic, statistic, accumulator],
    )
    kernel = partial(
        _kernel, block=block, groups=groups, compute_dtype=widest(q=q, k=k, v=v)
    )
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=spec,
        interpret=interpret,
    )(visible_length(mask), q, k, v, padded_mask)
    out = einops.rearrange(out, "r k (g t) f -> r t (k g f)", t=padded)
    return out[:, :length]


def _heads_per_program(heads: int, queries: int, size: int, block: int) -> int:
    """Largest divisor of the key/value heads that fits into `_MAX_BYTES`.

    Counted per head: queries, outputs, accumulators and scores, and a block of keys and
    values.
    """
    padded_size = -(-size // _LANES) * _LANES
    head = 4 * (queries * (4 * padded_size + 4 * block) + 4 * block * padded_size)
    divisors = (h for h in range(1, heads + 1) if heads % h == 0)
    return max((h for h in divisors if h * head <= _MAX_BYTES), default=1)


def _kernel(
    lengths,
    q,
    k,
    v,
    mask,
    out,
    running_max,
    running_sum,
    accumulator,
    *,
    block: int,
    groups: int,
    compute_dtype: jnp.dtype,
):
    """One block of slots: merges its softmax with that of the blocks before it."""
    sequence, step = pl.program_id(0), pl.program_id(2)
    precision = precision_of(compute_dtype)

    @pl.when(step == 0)
    def _():
        running_max[...] = jnp.full(running_max.shape, _MASKED, jnp.float32)
        running_sum[...] = jnp.zeros(running_sum.shape, jnp.float32)
        accumulator[...] = jnp.zeros(accumulator.shape, jnp.float32)

    @pl.when(step * block < lengths[sequence])
    def _():
        scores = jax.lax.dot_general(
            q[0].astype(compute_dtype),
            k[0].astype(compute_dtype),
            (((2,), (2,)), ((0,), (0,))),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        visible = jnp.concatenate([mask[0]] * groups, axis=0) > 0
        scores = jnp.where(visible[None], scores * q.shape[-1] ** -0.5, _MASKED)
        block_max = jnp.max(scores, axis=-1, keepdims=True)
        new_max = jnp.maximum(running_max[...], block_max)
        weights, decay = jnp.exp(scores - new_max), jnp.exp(running_max[...] - new_max)
        values = jax.lax.dot_general(
            weights.astype(compute_dtype),
            v[0].astype(compute_dtype),
            (((2,), (1,)), ((0,), (0,))),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        block_sum = jnp.sum(weights, axis=-1, keepdims=True)
        running_max[...] = new_max
        running_sum[...] = decay * running_sum[...] + block_sum
        accumulator[...] = decay * accumulator[...] + values

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        # The sum is 0 for a query that attends to nothing.
        total = jnp.maximum(running_sum[...], 1e-30)
        out[0] = (accumulator[...] / total).astype(out.dtype)
