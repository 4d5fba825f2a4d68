"""Attention over a KV cache, and commits to it, in Pallas kernels."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax

from jaxspec.core.dtypes import widest
from jaxspec.core.kv_cache import Layers, gather_path, write
from jaxspec.errors import ConfigError
from jaxspec.nn.rope import split_and_rotate
from jaxspec.typing import Array, Bool, Float, Int

Backend = Literal["triton", "mosaic", "triton interpreted", "mosaic interpreted"]
# Slots in a block of the TPU kernel; the capacity of a cache must be a multiple of it.
_SLOT_BLOCK = 128


def padded_capacity(slots: int) -> int:
    """Smallest cache capacity, at least `slots`, that every kernel supports."""
    return -(-slots // _SLOT_BLOCK) * _SLOT_BLOCK


def kernel_step(
    fused: Float[Array, "R T g K F"],
    angles: Float[Array, "R T f 2"],
    mask: Bool[Array, "R T S"],
    cache: tuple[Array, Array],
    starts: Int[Array, "R"],
    fallback: Callable[..., Any],
    backend: Backend | None = None,
) -> tuple[Float[Array, "R T D"], tuple[Array, Array]]:
    """Attention over a KV cache that reads only the blocks with visible slots.

    Computes the same as `nn.attention.xla_step`. On NVIDIA GPUs one kernel applies the
    rotary embeddings, writes keys and values to the cache, and attends. On TPUs, where
    XLA fuses the small operations, only the attention is a kernel.

    Args:
      fused: output of the fused query/key/value projection: for each key/value head,
        its `g - 2 = H / K` queries, its key and its value.
      angles: cosines and sines of the tokens' positions, `f = F / 2`.
      mask: True where a query may attend to a slot.
      cache: keys and values `[R, K, S, F]`.
      starts: slot of the first of the `T` tokens, int32.
      fallback: function such as `xla_step`, for shapes that a platform's kernel does
        not support.
      backend: name of a kernel; by default the kernel of the platform that the program
        is compiled for. A CPU interprets the GPU kernel, for tests.

    Returns:
      Outputs in the dtype of `fused`, `D = H F`, and the cache with the new keys and
      values. Different dtypes are promoted as in `nn.attention.attend`.

    Raises:
      ConfigError: the kernel named by `backend` does not support the shapes, or an
        array is not floating-point.
    """
    # Imported on use: Pallas takes half a second to import.
    from jaxspec.nn.kernels.triton_attention import triton_limitation

    inputs = fused, angles, mask, *cache, starts
    compute_dtype = widest(queries=fused, keys=cache[0], values=cache[1])
    limitations = {
        "triton": triton_limitation(fused.shape, compute_dtype.itemsize),
        "mosaic": _mosaic_limitation(cache[0].shape),
    }
    if backend is not None:
        if limitation := limitations[backend.split()[0]]:
            raise ConfigError(f"{limitation}; use attention='xla'")
        out, k, v = _backend_step(backend)(*inputs)
        return out, (k, v)

    def plain(fused, angles, mask, k, v, starts):
        out, (k, v) = fallback(fused, angles, mask, (k, v), starts)
        return out, k, v

    gpu = plain if limitations["triton"] else _backend_step("triton")
    tpu = plain if limitations["mosaic"] else _backend_step("mosaic")
    cpu = plain if limitations["triton"] else _backend_step("triton interpreted")
    out, k, v = jax.lax.platform_dependent(
        *inputs, cuda=gpu, rocm=gpu, tpu=tpu, default=cpu
    )
    return out, (k, v)


def kernel_gather_path(
    layers: Layers,
    lengths: Int[Array, "R"],
    nodes: int,
    path: Int[Array, "R A"],
    interpret: bool | None = None,
) -> Layers:
    """`core.kv_cache.gather_path` with one kernel launch on GPUs for many layers.

    Args:
      layers: keys and values `[R, K, S, F]` of each layer.
      lengths: first slot of each sequence's window of draft nodes, int32.
      nodes: slots of the window.
      path: accepted nodes of the window, int32, ascending, below `nodes`.
      interpret: whether to interpret the kernel, for tests; by default GPUs run the
        kernel and other platforms plain XLA.

    Returns:
      Layers with the slots `lengths + path` moved to `lengths ..`.
    """
    from jaxspec.nn.kernels.triton_move import triton_gather_path

    inputs = layers, lengths, path
    if interpret is not None:
        return triton_gather_path(*inputs, interpret=interpret)

    def plain(layers, lengths, path):
        return gather_path(layers, lengths, nodes, path)

    return jax.lax.platform_dependent(
        *inputs, cuda=triton_gather_path, rocm=triton_gather_path, default=plain
    )


def _mosaic_limitation(shape: tuple[int, ...]) -> str:
    """Reason why the TPU kernel does not support a cache; empty where it does."""
    slots = shape[2]
    if slots % _SLOT_BLOCK:
        return (
            f"a cache of {slots} slots: the TPU attention kernel needs a multiple "
            f"of {_SLOT_BLOCK}"
        )
    return ""


def _backend_step(backend: Backend) -> Callable[..., Any]:
    interpret = backend.endswith("interpreted")
    if backend.startswith("mosaic"):
        return partial(_mosaic_step, interpret=interpret)
    from jaxspec.nn.kernels.triton_attention import triton_step

    return partial(triton_step, interpret=interpret)


def _mosaic_step(fused, angles, mask, k, v, starts, *, interpret: bool):
    from jaxspec.nn.kernels.mosaic_attention import mosaic_attend

    q, new_k, new_v = split_and_rotate(fused, angles)
    k, v = write(k, new_k, starts), write(v, new_v, starts)
    out = mosaic_attend(q, k, v, mask, block=_SLOT_BLOCK, interpret=interpret)
    return out, k, v
