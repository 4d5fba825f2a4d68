"""Attending over a cache, and committing to it, by kernels of the device's own."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax

from jaxspec.errors import ConfigError
from jaxspec.nn.rope import turned
from jaxspec.spec.cache import Layers, gather_path, write
from jaxspec.spec.dtypes import widest
from jaxspec.typing import Array, Bool, Float, Int

Backend = Literal["triton", "mosaic", "triton interpreted", "mosaic interpreted"]
# A TPU's blocks of slots; caches hold whole ones.
_WHOLE = 128


def whole_blocks(slots: int) -> int:
    """The capacity, at least `slots`, of a cache that every kernel can read."""
    return -(-slots // _WHOLE) * _WHOLE


def kernel_step(
    fused: Float[Array, "R T g K F"],
    angles: Float[Array, "R T f 2"],
    mask: Bool[Array, "R T S"],
    cache: tuple[Array, Array],
    starts: Int[Array, "R"],
    otherwise: Callable[..., Any],
    backend: Backend | None = None,
) -> tuple[Float[Array, "R T D"], tuple[Array, Array]]:
    """Attends as `nn.attention.separate_step` does, and reads only what is filled.

    On an NVIDIA GPU one kernel turns queries and keys, writes keys and values where
    they belong, and attends; on a TPU, whose compiler joins small operations itself, a
    kernel attends after the cache was written.

    Args:
      fused: `g = G + 2`: `G` queries of each key/value head, its key and its value.
      angles: cosines and sines of the rows' positions.
      mask: who sees which slot.
      cache: keys and values `[R, K, S, F]`.
      starts: slots of the first of the `T` tokens.
      otherwise: the same by plain XLA, for sizes that a platform's kernel cannot take.
      backend: which kernel; by default that of the platform which the program is
        compiled for, and on a CPU the GPU's in Pallas's interpreter, for tests.

    Returns:
      Outputs, `D = G K F`, of the dtype of `fused`, and the cache with the tokens in
      it. Arrays of several dtypes meet as in `nn.attention.attend`.

    Raises:
      ConfigError: a kernel that was asked for by name cannot take the sizes, or an
        array is not floating-point.
    """
    # Here, since Pallas takes half a second to import.
    from jaxspec.nn.kernels.triton_attention import triton_refuses

    given = fused, angles, mask, *cache, starts
    wide = widest(queries=fused, keys=cache[0], values=cache[1])
    wrong = {
        "triton": triton_refuses(fused.shape, wide.itemsize),
        "mosaic": _mosaic_refuses(cache[0].shape),
    }
    if backend is not None:
        if why := wrong[backend.split()[0]]:
            raise ConfigError(f"{why}; attention='xla' takes any")
        out, k, v = _by(backend)(*given)
        return out, (k, v)

    def plain(fused, angles, mask, k, v, starts):
        out, (k, v) = otherwise(fused, angles, mask, (k, v), starts)
        return out, k, v

    gpu = plain if wrong["triton"] else _by("triton")
    out, k, v = jax.lax.platform_dependent(
        *given,
        cuda=gpu,
        rocm=gpu,
        tpu=plain if wrong["mosaic"] else _by("mosaic"),
        default=plain if wrong["triton"] else _by("triton interpreted"),
    )
    return out, (k, v)


def kernel_move(
    layers: Layers,
    lengths: Int[Array, "R"],
    nodes: int,
    path: Int[Array, "R A"],
    interpret: bool | None = None,
) -> Layers:
    """`spec.cache.gather_path`; on a GPU one launch for as many layers as it can hold.

    Args:
      layers: keys and values.
      lengths: where the window begins.
      nodes: its slots.
      path: int32, not descending, below `nodes`.
      interpret: whether the kernel is interpreted; by default it is taken where the
        program is compiled for a GPU, and plain XLA elsewhere.
    """
    from jaxspec.nn.kernels.triton_move import triton_move

    given = layers, lengths, path
    if interpret is not None:
        return triton_move(*given, interpret=interpret)

    def plain(layers, lengths, path):
        return gather_path(layers, lengths, nodes, path)

    return jax.lax.platform_dependent(
        *given, cuda=triton_move, rocm=triton_move, default=plain
    )


def _mosaic_refuses(shape: tuple[int, ...]) -> str:
    slots = shape[2]
    if slots % _WHOLE:
        return (
            f"a cache of {slots} slots: on a TPU the attention kernel needs a multiple "
            f"of {_WHOLE}"
        )
    return ""


def _by(backend: Backend) -> Callable[..., Any]:
    interpret = backend.endswith("interpreted")
    if backend.startswith("mosaic"):
        return partial(_mosaic_step, interpret=interpret)
    from jaxspec.nn.kernels.triton_attention import triton_step

    return partial(triton_step, interpret=interpret)


def _mosaic_step(fused, angles, mask, k, v, starts, *, interpret: bool):
    from jaxspec.nn.kernels.mosaic_attention import mosaic_attend

    q, new_k, new_v = turned(fused, angles)
    k, v = write(k, new_k, starts), write(v, new_v, starts)
    return mosaic_attend(q, k, v, mask, block=_WHOLE, interpret=interpret), k, v
