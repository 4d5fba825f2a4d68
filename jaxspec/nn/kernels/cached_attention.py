"""Attending over a cache, and committing to it, by kernels of the device's own."""

from functools import partial
from typing import Literal

import jax

from jaxspec.errors import ConfigError
from jaxspec.nn.rope import turned
from jaxspec.spec.cache import Layers, move_rows, write
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
      backend: which kernel; by default that of the platform which the program is
        compiled for, and on a CPU the GPU's in Pallas's interpreter, for tests.

    Returns:
      Outputs, `D = G K F`, and the cache with the tokens in it.

    Raises:
      ConfigError: sizes that the kernel cannot take.
    """
    given = fused, angles, mask, *cache, starts
    if backend is not None:
        out, k, v = _by(backend)(*given)
        return out, (k, v)
    out, k, v = jax.lax.platform_dependent(
        *given,
        cuda=_by("triton"),
        rocm=_by("triton"),
        tpu=_by("mosaic"),
        default=_by("triton interpreted"),
    )
    return out, (k, v)


def kernel_move(
    layers: Layers,
    lengths: Int[Array, "R"],
    nodes: int,
    path: Int[Array, "R A"],
    backend: Backend | None = None,
) -> Layers:
    """`spec.cache.move_rows`; on an NVIDIA GPU one kernel for all layers."""
    # Here, since Pallas takes half a second to import.
    from jaxspec.nn.kernels.triton_move import triton_move

    given = layers, lengths, path
    if backend is not None:
        return triton_move(*given, interpret=backend.endswith("interpreted"))

    def plain(layers, lengths, path):
        return move_rows(layers, lengths, nodes, path)

    return jax.lax.platform_dependent(
        *given, cuda=triton_move, rocm=triton_move, default=plain
    )


def _by(backend: Backend):
    interpret = backend.endswith("interpreted")
    if backend.startswith("mosaic"):
        return partial(_mosaic_step, interpret=interpret)
    # Here, since Pallas takes half a second to import.
    from jaxspec.nn.kernels.triton_attention import triton_step

    return partial(triton_step, interpret=interpret)


def _mosaic_step(fused, angles, mask, k, v, starts, *, interpret: bool):
    if k.shape[2] % _WHOLE:
        raise ConfigError(
            f"a cache of {k.shape[2]} slots: on a TPU the attention kernel needs a "
            f"multiple of {_WHOLE}; attention='xla' takes any"
        )
    from jaxspec.nn.kernels.mosaic_attention import mosaic_attend

    q, new_k, new_v = turned(fused, angles)
    k, v = write(k, new_k, starts), write(v, new_v, starts)
    return mosaic_attend(q, k, v, mask, block=_WHOLE, interpret=interpret), k, v
