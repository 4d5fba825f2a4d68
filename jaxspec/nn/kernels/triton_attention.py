"""One kernel a layer on NVIDIA GPUs: rotary turns, writing to the cache, attention.

A step of a small batch is a chain of short kernels, whose launches cost as much as what
they read. XLA makes four or five of this one: turned queries, written keys, scores,
written values, softmax with the sum of values.

Each program does one key/value head of one row. It turns the new keys and attends over
them where they are, in registers, and over older slots block by block with a running
softmax; so nothing is read back that another thread may not have written yet.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxspec.nn.kernels.filled import reach
from jaxspec.nn.kernels.precision import precision_of
from jaxspec.nn.rope import pair_turns
from jaxspec.spec.dtypes import widest
from jaxspec.typing import Array, Bool, Float, Int

# Added to masked scores, as in `nn.attention`.
_MASKED = -1e30
# Matrix units want at least so many rows.
_LEAST = 16
# Bytes of the queries that a program holds; more do not fit beside the rest.
_HELD = 2**16


def triton_refuses(shape: tuple[int, ...], itemsize: int) -> str:
    """Why the kernel cannot take a fused map `[R, T, g, K, F]`; empty where it can."""
    _, length, parts, _, size = shape
    groups = parts - 2
    if size & (size - 1) or groups & (groups - 1):
        return (
            f"heads of {size}, {groups} of them a key/value head: on a GPU the "
            "attention kernel needs powers of two"
        )
    if groups * pl.next_power_of_2(length) * size * itemsize > _HELD:
        return f"{length} tokens, {groups} heads of {size}: too many queries for a GPU"
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
    """Outputs `[R, T, D]` and the cache with the tokens in it; see `kernel_step`."""
    rows, length, parts, heads, size = fused.shape
    groups = parts - 2
    padded = max(pl.next_power_of_2(length), _LEAST // groups)
    block = 128 if groups * padded <= 64 else 64
    cos, sin = pair_turns(angles)
    kernel = partial(
        _kernel,
        length=length,
        padded=padded,
        groups=groups,
        block=block,
        wide_dtype=widest(queries=fused, keys=k, values=v),
    )
    params: dict[str, Any] = {"interpret": True}
    if not interpret:
        warps = 4 if groups * padded * size <= 64 * 64 else 8
        options = triton.CompilerParams(num_warps=warps, num_stages=2)
        params = {"compiler_params": options}
    out = jax.ShapeDtypeStruct((rows, length, heads * groups * size), fused.dtype)
    same = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)]
    return pl.pallas_call(
        kernel,
        out_shape=[out, *same],
        grid=(rows, heads),
        input_output_aliases={6: 1, 7: 2},
        **params,
    )(
        starts.astype(jnp.int32),
        reach(mask),
        fused,
        cos,
        sin,
        mask.astype(jnp.int8),
        k,
        v,
    )


def _kernel(
    starts,
    reached,
    fused,
    cos,
    sin,
    seen,
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
    wide_dtype: jnp.dtype,
):
    row, head = pl.program_id(0), pl.program_id(1)
    slots, size = old_k.shape[2:]
    start, channel = starts[row], jnp.arange(size)
    precise = precision_of(wide_dtype)

    def wide(where):
        """Of rows, for all their channels."""
        return where[:, None] & (channel >= 0)[None]

    def load(ref, *index, where):
        return triton.load(ref.at[index], mask=where, other=0)

    def given(token, part, channel):
        where = wide(token < length)
        index = row, token[:, None], part, head, channel[None]
        return load(fused, *index, where=where)

    def turn(token, part):
        """Each channel with its pair's other one; rounded as `nn.rope.rotate` does."""
        where = wide(token < length)
        index = row, token[:, None], channel[None]
        own, other = given(token, part, channel), given(token, part, channel ^ 1)
        own, other = own.astype(jnp.float32), other.astype(jnp.float32)
        by = load(cos, *index, where=where), load(sin, *index, where=where)
        return (own * by[0] + other * by[1]).astype(fused.dtype)

    # Queries in order of their group, then of their token.
    query = jnp.arange(groups * padded)
    asker, group = query % padded, query // padded
    queries = turn(asker, group[:, None]).astype(wide_dtype)

    def scored(keys, slot, there):
        """Scores of slots, masked; nobody sees one that is not there."""
        scores = jax.lax.dot_general(
            queries,
            keys.astype(wide_dtype),
            (((1,), (1,)), ((), ())),
            precision=precise,
            preferred_element_type=jnp.float32,
        )
        where = (asker < length)[:, None] & there[None]
        visible = load(seen, row, asker[:, None], slot[None], where=where) > 0
        return jnp.where(visible, scores * size**-0.5, _MASKED)

    def weighted(weights, values):
        return jax.lax.dot_general(
            weights.astype(wide_dtype),
            values.astype(wide_dtype),
            (((1,), (0,)), ((), ())),
            precision=precise,
            preferred_element_type=jnp.float32,
        )

    # The new tokens: written, and attended over as they are here.
    token = jnp.arange(max(padded, _LEAST))
    slot = start + token
    there = (token < length) & (slot < slots)
    keys = turn(token, groups).astype(old_k.dtype)  # as the cache has them
    values = given(token, groups + 1, channel).astype(old_v.dtype)
    where = wide(there)
    index = row, head, slot[:, None], channel[None]
    triton.store(new_k.at[index], keys, mask=where)
    triton.store(new_v.at[index], values, mask=where)
    scores = scored(keys, slot, there)
    best = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - best[:, None])
    total = jnp.sum(weights, axis=-1)

    def older(i, carry):
        best, total, summed = carry
        slot = i * block + jnp.arange(block)
        # Not the new tokens' slots, which other threads may be writing.
        there = (slot < slots) & ((slot < start) | (slot >= start + length))
        where = wide(there)
        index = row, head, slot[:, None], channel[None]
        scores = scored(load(old_k, *index, where=where), slot, there)
        highest = jnp.maximum(best, jnp.max(scores, axis=-1))
        weights, kept = jnp.exp(scores - highest[:, None]), jnp.exp(best - highest)
        values = load(old_v, *index, where=where)
        total = kept * total + jnp.sum(weights, axis=-1)
        return highest, total, kept[:, None] * summed + weighted(weights, values)

    blocks = (reached[row] + block - 1) // block
    carry = best, total, weighted(weights, values)
    _, total, summed = jax.lax.fori_loop(0, blocks, older, carry)
    result = summed / total[:, None]
    where = wide(asker < length)
    place = ((head * groups + group) * size)[:, None] + channel[None]
    triton.store(
        out.at[row, asker[:, None], place], result.astype(out.dtype), mask=where
    )
