"""The numbers of a conversion: one parameter at a time, in the order of its lines."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxspec.convert.mapping import Piece
from jaxspec.convert.reading.stored import printable
from jaxspec.convert.transforms import TRANSFORMS
from jaxspec.convert.understand import Conversion, Line
from jaxspec.errors import ConfigError, DataError, NonFiniteError

Progress = Callable[[int], object]


def arrays(
    conversion: Conversion, progress: Progress = lambda count: None
) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter, one at a time, in the order of `lines`.

    Raises:
      NonFiniteError: a tensor holds NaN or infinity.
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
        if np.dtype(x.dtype).kind not in "iub" and not _finite(x):
            raise NonFiniteError(
                f"'{source.tensors[name].file}': {name} holds NaN or infinity; the "
                "weights are unusable, fetch them again"
            )
        return x

    for line in conversion.lines:
        dtype = np.dtype(line.dtype)
        if line.ours in plan.derived:
            made = plan.derived[line.ours]
            whole = np.asarray(made.make(*(read(n) for n in made.names)))
            whole = whole.astype(dtype, copy=False)
        else:
            whole = _assembled(conversion, line, read)
        if whole.shape != line.shape:
            raise ConfigError(
                f"'{source.name}' makes {line.ours} {whole.shape}, not {line.shape}"
            )
        if dtype.kind not in "iu" and not _finite(whole):
            raise NonFiniteError(
                f"'{source.name}': {line.ours} does not fit into {dtype}; keep a wider "
                "--dtype"
            )
        progress(whole.nbytes)
        yield line.ours, whole


def _assembled(
    conversion: Conversion, line: Line, read: Callable[[str], np.ndarray]
) -> np.ndarray:
    """A parameter from its tensors: a view of the only one, or a new array."""
    pieces, dtype = conversion.pieces[line.ours], np.dtype(line.dtype)

    def part(piece: Piece) -> np.ndarray:
        there = TRANSFORMS[piece.rule.transform].there
        x = there(read(piece.name), conversion.plan.heads)
        with np.errstate(over="ignore"):  # told by the caller
            return x.astype(dtype, copy=False)

    if len(pieces) == 1:
        return part(pieces[0])
    whole, begin = np.empty(line.shape, dtype), 0
    for piece in pieces:
        x = part(piece)
        axis = piece.rule.axis % whole.ndim
        end = begin + x.shape[axis]
        whole[(slice(None),) * axis + (slice(begin, end),)] = x
        begin = end
        del x  # before the next one is read
    return whole


def blocks_of(x: np.ndarray, most: int = 1 << 22) -> Iterator[np.ndarray]:
    """Contiguous copies of rows, a few at a time."""
    rows = x.reshape(1) if x.ndim == 0 else x
    step = max(1, most * len(rows) // max(x.size, 1))
    for i in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[i : i + step])


def _finite(x: np.ndarray) -> bool:
    return all(
        bool(np.isfinite(block.astype(np.float32, copy=False)).all())
        for block in blocks_of(x)
    )
