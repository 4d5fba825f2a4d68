"""Commit of an accepted path to a KV cache, as a Pallas kernel for NVIDIA GPUs.

XLA launches one or two kernels per buffer, and a deep model has dozens of buffers. This
kernel moves the path of many layers in one launch.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxspec.core.kv_cache import Layers
from jaxspec.typing import Array, Int

# Largest number of bytes that one program holds in registers.
_MAX_BYTES = 2**17


def triton_gather_path(
    layers: Layers,
    lengths: Int[Array, "R"],
    path: Int[Array, "R A"],
    *,
    interpret: bool = False,
) -> Layers:
    """`core.kv_cache.gather_path`, in one launch per group of layers.

    A group is as many layers as the registers of a program hold.
    """
    size = layers[0][0].shape[-1]
    path_slots = pl.next_power_of_2(path.shape[1])
    layer_bytes = (
        2 * path_slots * pl.next_power_of_2(size) * layers[0][0].dtype.itemsize
    )
    group = max(1, _MAX_BYTES // layer_bytes)
    lengths, path = lengths.astype(jnp.int32), path.astype(jnp.int32)
    moved: list[tuple[Array, Array]] = []
    for first in range(0, len(layers), group):
        moved += _gather_path(layers[first : first + group], lengths, path, interpret)
    return tuple(moved)


def _gather_path(layers: Layers, lengths, path, interpret: bool):
    buffers, structure = jax.tree.flatten(layers)
    batch, heads = buffers[0].shape[:2]
    params: dict[str, Any] = {"interpret": True}
    if not interpret:
        options = triton.CompilerParams(num_warps=8, num_stages=1)
        params = {"compiler_params": options}
    moved = pl.pallas_call(
        partial(_kernel, count=len(buffers), interpret=interpret),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in buffers],
        grid=(batch, heads),
        input_output_aliases={2 + i: i for i in range(len(buffers))},
        **params,
    )(lengths, path, *buffers)
    return jax.tree.unflatten(structure, moved)


def _kernel(lengths, path, *buffers, count: int, interpret: bool):
    """One head of one sequence, for all buffers.

    Reads everything before it writes anything: source and target slots overlap.
    """
    sequence, head = pl.program_id(0), pl.program_id(1)
    slots, size = buffers[0].shape[2:]
    step = jnp.arange(pl.next_power_of_2(path.shape[1]))
    channel = jnp.arange(pl.next_power_of_2(size))
    step_mask, channel_mask = step < path.shape[1], channel < size
    start = lengths[sequence]
    node = triton.load(path.at[sequence, step], mask=step_mask, other=0)

    def at(buffer, slot):
        return buffer.at[sequence, head, slot[:, None], channel[None]]

    def mask(slot):
        return (step_mask & (slot < slots))[:, None] & channel_mask[None]

    source, target = start + node, start + step
    loaded = [
        triton.load(at(buffer, source), mask=mask(source), other=0)
        for buffer in buffers[:count]
    ]
    if not interpret:
        triton.debug_barrier()
    for buffer, x in zip(buffers[count:], loaded, strict=True):
        triton.store(at(buffer, target), x, mask=mask(target))
