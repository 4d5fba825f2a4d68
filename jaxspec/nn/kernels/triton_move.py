"""One kernel for many layers on NVIDIA GPUs: commits an accepted path.

XLA makes a kernel or two of every buffer, and a round of a deep model has dozens.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxspec.spec.cache import Layers
from jaxspec.typing import Array, Int

# Bytes that a program holds at once, in registers.
_HELD = 2**17


def triton_move(
    layers: Layers,
    lengths: Int[Array, "R"],
    path: Int[Array, "R A"],
    *,
    interpret: bool = False,
) -> Layers:
    """`spec.cache.gather_path`, a launch for as many layers as registers hold."""
    size = layers[0][0].shape[-1]
    depth = pl.next_power_of_2(path.shape[1])
    layer = 2 * depth * pl.next_power_of_2(size) * layers[0][0].dtype.itemsize
    together = max(1, _HELD // layer)
    given = lengths.astype(jnp.int32), path.astype(jnp.int32)
    moved: list[tuple[Array, Array]] = []
    for first in range(0, len(layers), together):
        moved += _move(layers[first : first + together], *given, interpret)
    return tuple(moved)


def _move(layers: Layers, lengths, path, interpret: bool):
    buffers, tree = jax.tree.flatten(layers)
    rows, heads = buffers[0].shape[:2]
    params: dict[str, Any] = {"interpret": True}
    if not interpret:
        options = triton.CompilerParams(num_warps=8, num_stages=1)
        params = {"compiler_params": options}
    moved = pl.pallas_call(
        partial(_kernel, count=len(buffers), interpret=interpret),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in buffers],
        grid=(rows, heads),
        input_output_aliases={2 + i: i for i in range(len(buffers))},
        **params,
    )(lengths, path, *buffers)
    return jax.tree.unflatten(tree, moved)


def _kernel(lengths, path, *buffers, count: int, interpret: bool):
    """Everything is read before anything is written: places overlap."""
    row, head = pl.program_id(0), pl.program_id(1)
    slots, size = buffers[0].shape[2:]
    place, channel = (
        jnp.arange(pl.next_power_of_2(path.shape[1])),
        jnp.arange(pl.next_power_of_2(size)),
    )
    there, start = place < path.shape[1], lengths[row]
    inside = channel < size
    step = triton.load(path.at[row, place], mask=there, other=0)

    def at(buffer, slot):
        return buffer.at[row, head, slot[:, None], channel[None]]

    def where(slot):
        return (there & (slot < slots))[:, None] & inside[None]

    source, target = start + step, start + place
    held = [
        triton.load(at(buffer, source), mask=where(source), other=0)
        for buffer in buffers[:count]
    ]
    if not interpret:
        triton.debug_barrier()
    for buffer, numbers in zip(buffers[count:], held, strict=True):
        triton.store(at(buffer, target), numbers, mask=where(target))
