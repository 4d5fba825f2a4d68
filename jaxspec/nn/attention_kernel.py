"""Attention of a few queries over a long cache as a Pallas kernel.

Each program reads one block of slots of one key/value head and row, and leaves a
partial softmax: its largest score, its sum and its weighted values (flash decoding).
Keys and values behind a row's last visible slot are not read; what is left there is an
empty part. A small reduction outside joins the parts.
"""

from functools import partial
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Bool, Float

Backend = Literal["triton", "mosaic", "interpret"]
# A block's slots: the largest of these that divides the cache.
BLOCKS = (128, 64, 32)
# Added to masked scores, as in `nn.attention`.
_MASKED = -1e30
# Matrix units want at least so many queries; int8 masks of a TPU come in 32 rows.
_LEAST_QUERIES = 32


def whole_blocks(slots: int) -> int:
    """The capacity, at least `slots`, of a cache that the kernel can read."""
    return -(-slots // BLOCKS[0]) * BLOCKS[0]


def kernel_attend(
    q: Float[Array, "R T H F"],
    k: Float[Array, "R K S F"],
    v: Float[Array, "R K S F"],
    mask: Bool[Array, "R T S"],
    backend: Backend | None = None,
) -> Float[Array, "R T D"]:
    """Softmax attention as `nn.attention.attend`, scores and softmax in float32.

    Args:
      q: queries, at most a few hundred a row.
      k: keys; `S` is a multiple of 32.
      v: values.
      mask: who sees which slot.
      backend: how the kernel is made; by default what the default device needs, and
        on a CPU Pallas's interpreter, which is for tests.

    Raises:
      ConfigError: sizes that the kernel cannot take.
    """
    if backend is None:
        backends: dict[str, Backend] = {"gpu": "triton", "tpu": "mosaic"}
        backend = backends.get(jax.default_backend(), "interpret")
    rows, length, heads, size = q.shape
    kv_heads, slots = k.shape[1:3]
    block = next((b for b in BLOCKS if slots % b == 0), None)
    if block is None:
        raise ConfigError(
            f"a cache of {slots} slots: the attention kernel needs a multiple of "
            f"{BLOCKS[-1]}; attention='xla' takes any"
        )
    groups, padded = heads // kv_heads, _LEAST_QUERIES
    if backend == "triton" and (size & (size - 1) or groups & (groups - 1)):
        raise ConfigError(
            f"heads of {size}, {groups} of them a key/value head: on a GPU the "
            "attention kernel needs powers of two; attention='xla' takes any"
        )
    while padded < length:
        padded *= 2
    fill = padded - length
    q = jnp.pad(q, ((0, 0), (0, fill), (0, 0), (0, 0)))
    q = einops.rearrange(q, "r t (k g) f -> r k (g t) f", k=kv_heads)
    reach = jnp.max(jnp.where(mask, jnp.arange(1, slots + 1), 0), axis=(1, 2))
    seen = jnp.pad(mask, ((0, 0), (0, fill), (0, 0))).astype(jnp.int8)
    call = _call(rows, kv_heads, groups, padded, slots, size, block, q.dtype, backend)
    values, best, total = call(reach.astype(jnp.int32), q, k, v, seen)
    best, total = best[..., 0, :], total[..., 0, :]
    weight = jnp.exp(best - jnp.max(best, axis=2, keepdims=True))
    values = jnp.sum(values * weight[..., None], axis=2)
    total = jnp.maximum(jnp.sum(total * weight, axis=2), 1e-30)  # 0: sees nothing
    out = values / total[..., None]
    out = einops.rearrange(out.astype(v.dtype), "r k (g t) f -> r t (k g f)", t=padded)
    return out[:, :length]


def _call(rows, heads, groups, length, slots, size, block, dtype, backend) -> Any:
    """The kernel over a grid of (row, key/value head, block of slots)."""
    queries, parts = groups * length, slots // block
    # The axis of one is for TPUs, whose blocks end in whole tiles or whole axes.
    stats = jax.ShapeDtypeStruct((rows, heads, parts, 1, queries), jnp.float32)
    sums = jax.ShapeDtypeStruct((rows, heads, parts, queries, size), jnp.float32)
    kernel = partial(_kernel, block=block, groups=groups, precise=dtype == jnp.float32)
    mosaic = backend == "mosaic"

    # A TPU fetches blocks ahead: those behind a row's reach are the last one again.
    def fetched(r, j, reach):
        if not reach:
            return j
        last = jnp.maximum(reach[0][r] - 1, 0) // block
        return jnp.minimum(j, last)

    q_spec = pl.BlockSpec((1, 1, queries, size), lambda r, h, j, *_: (r, h, 0, 0))
    kv_spec = pl.BlockSpec(
        (1, 1, block, size), lambda r, h, j, *reach: (r, h, fetched(r, j, reach), 0)
    )
    mask_spec = pl.BlockSpec(
        (1, length, block), lambda r, h, j, *reach: (r, 0, fetched(r, j, reach))
    )
    in_specs = [q_spec, kv_spec, kv_spec, mask_spec]
    out_specs = [
        pl.BlockSpec((1, 1, 1, queries, size), lambda r, h, j, *_: (r, h, j, 0, 0)),
        *[pl.BlockSpec((1, 1, 1, 1, queries), lambda r, h, j, *_: (r, h, j, 0, 0))] * 2,
    ]
    shape = [sums, stats, stats]
    grid = (rows, heads, parts)
    if mosaic:
        from jax.experimental.pallas import tpu

        spec = tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=grid, in_specs=in_specs, out_specs=out_specs
        )
        return pl.pallas_call(kernel, out_shape=shape, grid_spec=spec)
    params: dict[str, Any] = {"interpret": True}
    if backend == "triton":
        from jax.experimental.pallas import triton

        warps = 4 if queries * size <= 64 * 64 else 8
        options = triton.CompilerParams(num_warps=warps, num_stages=1)
        params = {"compiler_params": options}
    reach_spec = pl.BlockSpec((rows,), lambda r, h, j: (0,))
    return pl.pallas_call(
        kernel,
        out_shape=shape,
        grid=grid,
        in_specs=[reach_spec, *in_specs],
        out_specs=out_specs,
        **params,
    )


def _kernel(
    reach, q, k, v, seen, values, best, total, *, block: int, groups: int, precise: bool
):
    """One block: scores, their largest, the sum of their exponentials, the values."""
    row, part = pl.program_id(0), pl.program_id(2)
    inside = part * block < reach[row]
    # Not None, which would take the engine's "highest" for short floats, too.
    exact = jax.lax.Precision.HIGHEST if precise else jax.lax.Precision.DEFAULT

    @pl.when(inside)
    def _():
        queries, keys = q[0, 0], k[0, 0]
        scores = jax.lax.dot_general(
            queries,
            keys,
            (((1,), (1,)), ((), ())),
            precision=exact,
            preferred_element_type=jnp.float32,
        )
        scores *= queries.shape[-1] ** -0.5
        visible = seen[0] > 0
        if groups > 1:
            wide = jnp.broadcast_to(visible[None], (groups, *visible.shape))
            visible = wide.reshape(scores.shape)
        scores = jnp.where(visible, scores, _MASKED)
        highest = jnp.max(scores, axis=-1)
        weights = jnp.exp(scores - highest[:, None])
        best[0, 0, 0, 0] = highest
        total[0, 0, 0, 0] = jnp.sum(weights, axis=-1)
        values[0, 0, 0] = jax.lax.dot_general(
            weights.astype(v.dtype),
            v[0, 0],
            (((1,), (0,)), ((), ())),
            precision=exact,
            preferred_element_type=jnp.float32,
        )

    @pl.when(~inside)
    def _():
        best[0, 0, 0, 0] = jnp.full(best.shape[4:], _MASKED, jnp.float32)
        total[0, 0, 0, 0] = jnp.zeros(total.shape[4:], jnp.float32)
        values[0, 0, 0] = jnp.zeros(values.shape[3:], jnp.float32)
