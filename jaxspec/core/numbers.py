"""Checked conversion of settings to int32 and float32."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec.errors import ConfigError

WHOLE = np.iinfo(np.int32).max
# Largest scale; its products with logits stay within the range of float32.
LARGEST_SCALE = 1e6


def checked_numbers(
    name: str,
    value: Any,
    dtype: Any,
    in_range: Callable[[np.ndarray], Any],
    expected: str,
) -> np.ndarray:
    """Converts a setting to the dtype that the device uses, and checks its range.

    Args:
      name: name of the setting.
      value: number, or array of numbers.
      dtype: signed integer dtype, which takes whole numbers only, or float dtype.
      in_range: mask of the numbers, in `dtype`, that are allowed.
      expected: description of the allowed numbers, for the error.

    Raises:
      ConfigError: a number is not allowed, is NaN or infinite, or is not a number of
        `dtype`: a fraction, or too large.
    """
    array, integer = np.asarray(value), np.issubdtype(dtype, np.integer)
    if array.dtype.kind not in "biufVO":  # V: bfloat16; O: whole numbers over 64 bits
        raise _impossible(name, repr(value), expected)
    try:
        exact = array if array.dtype.kind in "biu" else array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _impossible(name, repr(value), expected) from None
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.isfinite(exact)
        if integer:
            limits = np.iinfo(dtype)
            fits &= (exact == np.floor(exact)) & (exact <= limits.max)
            fits &= exact >= limits.min
        numbers = np.where(fits, exact, 0).astype(dtype)
        fits &= np.isfinite(numbers) & in_range(numbers)
    if not fits.all():
        raise _impossible(name, str(array[~fits].flat[0]), expected)
    return numbers


def whole(name: str, value: Any, least: int = 1, most: int = WHOLE) -> np.ndarray:
    """Checks whole numbers from `least` to `most`, int32; see `checked_numbers`."""
    return checked_numbers(
        name,
        value,
        np.int32,
        lambda x: (x >= least) & (x <= most),
        f"a whole number from {least} to {most}",
    )


def within(
    name: str,
    value: Any,
    least: float = 0.0,
    most: float = LARGEST_SCALE,
    *,
    above: bool = False,
) -> np.ndarray:
    """Checks float32 numbers from `least`, or above it, to `most`.

    See `checked_numbers`.
    """
    ends = np.float32(least), np.float32(most)
    if above:  # a device may flush smaller numbers to 0
        ends = max(ends[0], np.finfo(np.float32).tiny), ends[1]
    expected = f"a number {'above' if above else 'from'} {least:.9g}"
    expected += f" {'and up ' if above else ''}to {most:.9g}"
    return checked_numbers(
        name, value, np.float32, lambda x: (x >= ends[0]) & (x <= ends[1]), expected
    )


def _impossible(name: str, value: str, expected: str) -> ConfigError:
    return ConfigError(f"{name}={value[:40]} is impossible; use {expected}")
