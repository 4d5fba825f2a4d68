"""Rotary embedding, cache write and attention in one Pallas kernel for NVIDIA GPUs.

A forward pass of a small batch is a chain of short kernels, and launching one costs as
much time as its memory traffic. XLA compiles this step to four or five kernels: rotated
queries, key write, scores, value write, and softmax with the weighted sum of values.

Each program handles one key/value head of one sequence. It attends to the new tokens
while their keys and values are in registers, and to older slots block by block with a
running softmax. It therefore never reads a slot back that another thread may not have
written yet.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxspec.core.dtypes import widest
from jaxspec.nn.kernels.filled import visible_length
from jaxspec.nn.kernels.precision import precision_of
from jaxspec.nn.rope import pairwise_cos_sin
from jaxspec.typing import Array, Bool, Float, Int

# Score of a masked slot, as in `nn.attention`.
_MASKED = -1e30
# Smallest number of rows that tensor cores multiply.
_MIN_ROWS = 16
# Largest size in bytes of the queries of a program, which are held in registers.
_MAX_BYTES = 2**16


def triton_limitation(shape: tuple[int, ...], itemsize: int) -> str:
    """Reason why the kernel does not support an input; empty where it does.

    Args:
      shape: shape of the fused queries, keys and values, `[R, T, g, K, F]`.
      itemsize: bytes of a number of the dtype of the products.
    """
    _, length, parts, _, size = shape
    groups = parts - 2
    if size & (size - 1) or groups & (groups - 1):
        return (
            f"heads of {size}, {groups} of them per key/value head: the GPU attention "
            "kernel needs powers of two"
        )
    if groups * pl.next_power_of_2(length) * size * itemsize > _MAX_BYTES:
        return (
            f"{length} tokens, {groups} heads of {size}: too many queries for the GPU "
            "attention kernel"
        )
    return ""


def triton_step(
    fused: Float[Array, "R T g K F"],
    angles: Float[Array, "R T f 2"],
    mask: Bool[Array, "R T S"],
    k: Float[Array, "R K S F"],
    v: Float[Array, "R K S F"],
    starts: Int[Array, "R"],
    *,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """Outputs `[R, T, D]`, and keys and values with the new tokens; see `kernel_step`.

    The cache buffers are updated in place.
    """
    batch, length, parts, heads, size = fused.shape
    groups = parts - 2
    padded = max(pl.next_power_of_2(length), _MIN_ROWS // groups)
    block = 128 if groups * padded <= 64 else 64
    cos, sin = pairwise_cos_sin(angles)
    kernel = partial(
        _kernel,
        length=length,
        padded=padded,
        groups=groups,
        block=block,
        compute_dtype=widest(queries=fused, keys=k, values=v),
    )
    params: dict[str, Any] = {"interpret": True}
    if not interpret:
        warps = 4 if groups * padded * size <= 64 * 64 else 8
        options = triton.CompilerParams(num_warps=warps, num_stages=2)
        params = {"compiler_params": options}
    out = jax.ShapeDtypeStruct((batch, length, heads * groups * size), fused.dtype)
    buffers = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)]
    return pl.pallas_call(
        kernel,
        out_shape=[out, *buffers],
        grid=(batch, heads),
        input_output_aliases={6: 1, 7: 2},
        **params,
    )(
        starts.astype(jnp.int32),
        visible_length(mask),
        fused,
        cos,
        sin,
        mask.astype(jnp.int8),
        k,
        v,
    )


def _kernel(
    starts,
    lengths,
    fused,
    cos,
    sin,
    mask,
    old_k,
    old_v,
    out,
    new_k,
    new_v,
    *,
    length: int,
    padded: int,
    groups: int,
    block: int,
    compute_dtype: jnp.dtype,
):
    """One key/value head of one sequence."""
    sequence, head = pl.program_id(0), pl.program_id(1)
    slots, size = old_k.shape[2:]
    start, channel = starts[sequence], jnp.arange(size)
    precision = precision_of(compute_dtype)

    def all_channels(row_mask):
        """The mask of some rows, for each channel of a head."""
        return row_mask[:, None] & (channel >= 0)[None]

    def load(ref, *index, where):
        return triton.load(ref.at[index], mask=where, other=0)

    def load_fused(token, part, channel):
        where = all_channels(token < length)
        index = sequence, token[:, None], part, head, channel[None]
        return load(fused, *index, where=where)

    def rotated(token, part):
        """Queries or keys after rotation, rounded as in `nn.rope.rotate`."""
        where = all_channels(token < length)
        index = sequence, token[:, None], channel[None]
        x = load_fused(token, part, channel).astype(jnp.float32)
        partner = load_fused(token, part, channel ^ 1).astype(jnp.float32)
        cosine, sine = load(cos, *index, where=where), load(sin, *index, where=where)
        return (x * cosine + partner * sine).astype(fused.dtype)

    # Queries, ordered by group, then by token.
    query = jnp.arange(groups * padded)
    query_token, group = query % padded, query // padded
    queries = rotated(query_token, group[:, None]).astype(compute_dtype)

    def masked_scores(keys, slot, slot_mask):
        """Scores of some slots; slots outside `slot_mask` are masked."""
        scores = jax.lax.dot_general(
            queries,
            keys.astype(compute_dtype),
            (((1,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        where = (query_token < length)[:, None] & slot_mask[None]
        index = sequence, query_token[:, None], slot[None]
        visible = load(mask, *index, where=where) > 0
        return jnp.where(visible, scores * size**-0.5, _MASKED)

    def weighted_sum(weights, values):
        return jax.lax.dot_general(
            weights.astype(compute_dtype),
            values.astype(compute_dtype),
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )

    # The new tokens: written to the cache, and attended to from registers.
    token = jnp.arange(max(padded, _MIN_ROWS))
    slot = start + token
    slot_mask = (token < length) & (slot < slots)
    keys = rotated(token, groups).astype(old_k.dtype)  # rounded as in the cache
    values = load_fused(token, groups + 1, channel).astype(old_v.dtype)
    where = all_channels(slot_mask)
    index = sequence, head, slot[:, None], channel[None]
    triton.store(new_k.at[index], keys, mask=where)
    triton.store(new_v.at[index], values, mask=where)
    scores = masked_scores(keys, slot, slot_mask)
    running_max = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - running_max[:, None])
    running_sum = jnp.sum(weights, axis=-1)

    def older_block(i, carry):
        running_max, running_sum, accumulator = carry
        slot = i * block + jnp.arange(block)
        # Other threads may be writing the slots of the new tokens.
        slot_mask = (slot < slots) & ((slot < start) | (slot >= start + length))
        where = all_channels(slot_mask)
        index = sequence, head, slot[:, None], channel[None]
        scores = masked_scores(load(old_k, *index, where=where), slot, slot_mask)
        new_max = jnp.maximum(running_max, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_max[:, None])
        decay = jnp.exp(running_max - new_max)
        values = load(old_v, *index, where=where)
        running_sum = decay * running_sum + jnp.sum(weights, axis=-1)
        accumulator = decay[:, None] * accumulator + weighted_sum(weights, values)
        return new_max, running_sum, accumulator

    blocks = (lengths[sequence] + block - 1) // block
    carry = running_max, running_sum, weighted_sum(weights, values)
    _, running_sum, accumulator = jax.lax.fori_loop(0, blocks, older_block, carry)
    result = accumulator / running_sum[:, None]
    where = all_channels(query_token < length)
    column = ((head * groups + group) * size)[:, None] + channel[None]
    triton.store(
        out.at[sequence, query_token[:, None], column],
        result.astype(out.dtype),
        mask=where,
    )
