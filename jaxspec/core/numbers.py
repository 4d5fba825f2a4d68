"""Settings as the numbers that a device holds: int32, float32."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec.errors import ConfigError

WHOLE = np.iinfo(np.int32).max
# No scale needs to be larger; products with logits stay far from float32's end.
LARGEST_SCALE = 1e6


def held(
    name: str,
    value: Any,
    dtype: Any,
    good: Callable[[np.ndarray], Any],
    wanted: str,
) -> np.ndarray:
    """A setting in the dtype that a device holds it in.

    Args:
      name: of the setting.
      value: a number, or an array of them.
      dtype: a signed integer, which takes whole numbers alone; or a float.
      good: of the numbers in `dtype`, those that are possible.
      wanted: what is possible, in words.

    Raises:
      ConfigError: a number is not possible, is NaN or infinite, or is not one of
        `dtype`: a fraction or too large.
    """
    given, whole = np.asarray(value), np.issubdtype(dtype, np.integer)
    if given.dtype.kind not in "biufVO":  # V: bfloat16; O: whole numbers over 64 bits
        raise _impossible(name, repr(value), wanted)
    try:
        exact = given if given.dtype.kind in "biu" else given.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _impossible(name, repr(value), wanted) from None
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.isfinite(exact)
        if whole:
            most = np.iinfo(dtype)
            fits &= (exact == np.floor(exact)) & (exact <= most.max)
            fits &= exact >= most.min
        numbers = np.where(fits, exact, 0).astype(dtype)
        fits &= np.isfinite(numbers) & good(numbers)
    if not fits.all():
        raise _impossible(name, str(given[~fits].flat[0]), wanted)
    return numbers


def whole(name: str, value: Any, least: int = 1, most: int = WHOLE) -> np.ndarray:
    """Whole numbers from `least` to `most`, int32; see `held`."""
    wanted = f"a whole number from {least} to {most}"
    return held(name, value, np.int32, lambda x: (x >= least) & (x <= most), wanted)


def within(
    name: str,
    value: Any,
    least: float = 0.0,
    most: float = LARGEST_SCALE,
    *,
    above: bool = False,
) -> np.ndarray:
    """float32 numbers from `least`, or above it, to `most`; see `held`."""
    ends = np.float32(least), np.float32(most)
    if above:  # a device may take what is smaller for 0
        ends = max(ends[0], np.finfo(np.float32).tiny), ends[1]
    wanted = f"a number {'above' if above else 'from'} {least:.9g}"
    wanted += f" {'and up ' if above else ''}to {most:.9g}"
    return held(
        name, value, np.float32, lambda x: (x >= ends[0]) & (x <= ends[1]), wanted
    )


def _impossible(name: str, value: str, wanted: str) -> ConfigError:
    return ConfigError(f"{name}={value[:40]} is impossible; use {wanted}")
