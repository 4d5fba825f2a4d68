"""Construction of converted parameters, one at a time."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxspec.convert.mapping import MappedTensor
from jaxspec.convert.plan import Conversion, ParamEntry
from jaxspec.convert.reading.source import printable
from jaxspec.convert.transforms import TRANSFORMS
from jaxspec.errors import ConfigError, DataError, NonFiniteError

# Receives the number of bytes that were processed since the last call.
Progress = Callable[[int], object]


def build_params(
    conversion: Conversion, progress: Progress = lambda count: None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the path and the array of every parameter, in the order of `entries`.

    Args:
      conversion: planned conversion.
      progress: function that receives the size in bytes of each parameter.

    Raises:
      DataError: a tensor cannot be read.
      ConfigError: a computed parameter has the wrong shape.
      NonFiniteError: a tensor holds NaN or infinity, or overflows the dtype.
    """
    source, plan = conversion.source, conversion.plan

    def read(name: str) -> np.ndarray:
        try:
            x = source.tensors[name].read()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"'{source.tensors[name].file}': {name} cannot be read "
                f"({printable(str(error))}); fetch it again"
            ) from None
        if np.dtype(x.dtype).kind not in "iub" and not _is_finite(x):
            raise NonFiniteError(
                f"'{source.tensors[name].file}': {name} holds NaN or infinity; the "
                "weights are unusable, fetch them again"
            )
        return x

    for entry in conversion.entries:
        dtype = np.dtype(entry.dtype)
        if entry.path in plan.computed:
            computed = plan.computed[entry.path]
            param = np.asarray(computed.compute(*(read(n) for n in computed.tensors)))
            param = param.astype(dtype, copy=False)
        else:
            param = _concatenate_parts(conversion, entry, read)
        if param.shape != entry.shape:
            raise ConfigError(
                f"'{source.name}' makes {entry.path} {param.shape}, not {entry.shape}"
            )
        if dtype.kind not in "iu" and not _is_finite(param):
            raise NonFiniteError(
                f"'{source.name}': {entry.path} does not fit into {dtype}; choose a "
                "wider --dtype"
            )
        progress(param.nbytes)
        yield entry.path, param


def _concatenate_parts(
    conversion: Conversion, entry: ParamEntry, read: Callable[[str], np.ndarray]
) -> np.ndarray:
    """Returns a parameter: a view of its only tensor, or a concatenation of several."""
    tensors, dtype = conversion.mapping[entry.path], np.dtype(entry.dtype)

    def transformed(tensor: MappedTensor) -> np.ndarray:
        to_jax = TRANSFORMS[tensor.rule.transform].to_jax
        x = to_jax(read(tensor.name), conversion.plan.heads)
        with np.errstate(over="ignore"):  # `build_params` raises for overflows
            return x.astype(dtype, copy=False)

    if len(tensors) == 1:
        return transformed(tensors[0])
    param, begin = np.empty(entry.shape, dtype), 0
    for tensor in tensors:
        x = transformed(tensor)
        axis = tensor.rule.axis % param.ndim
        end = begin + x.shape[axis]
        param[(slice(None),) * axis + (slice(begin, end),)] = x
        begin = end
        del x  # frees it before the next tensor is read
    return param


def iter_blocks(x: np.ndarray, max_size: int = 1 << 22) -> Iterator[np.ndarray]:
    """Yields contiguous copies of slices along the first axis.

    Args:
      x: array of any shape.
      max_size: number of elements of a block, at least one slice.
    """
    slices = x.reshape(1) if x.ndim == 0 else x
    step = max(1, max_size * len(slices) // max(x.size, 1))
    for i in range(0, len(slices), step):
        yield np.ascontiguousarray(slices[i : i + step])


def _is_finite(x: np.ndarray) -> bool:
    return all(
        bool(np.isfinite(block.astype(np.float32, copy=False)).all())
        for block in iter_blocks(x)
    )
