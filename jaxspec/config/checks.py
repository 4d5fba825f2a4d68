"""Checks of configuration fields."""

import math
import re
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from jaxspec.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def positive(config: Any, *names: str) -> None:
    """Raises `ConfigError` if one of the named fields is below 1."""
    for name in names:
        value = getattr(config, name)
        require(value >= 1, f"{name}={value} must be at least 1")


def whole(config: Any, least: int, *names: str) -> None:
    """Raises `ConfigError` unless the named fields are whole, `least` or more."""
    for name in names:
        value = getattr(config, name)
        good = isinstance(value, Integral) and not isinstance(value, bool)
        require(
            good and int(value) >= least,
            f"{name}={value!r} must be a whole number of at least {least}",
        )


def number(config: Any, words: str, fits: Callable[[Any], bool], *names: str) -> None:
    """Raises `ConfigError` unless the named fields are finite numbers that fit.

    Args:
      config: configuration with the fields.
      words: description of the valid numbers for the message, such as "above 0".
      fits: function that returns whether a number is valid.
      names: names of the fields.
    """
    for name in names:
        value = getattr(config, name)
        good = isinstance(value, Real) and not isinstance(value, bool)
        require(
            good and math.isfinite(value) and fits(value),
            f"{name}={value!r} must be a number {words}",
        )


def whole_number(text: str) -> int | None:
    """Parses 1 to 9 digits from 0 to 9; returns None for any other text.

    `str.isdigit` also accepts "²", which `int` does not.
    """
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def even_head_sizes(heads: int, width: int, head_dim: int | None = None) -> None:
    """Raises `ConfigError` unless the head size is a multiple of 4.

    Args:
      heads: number of heads.
      width: width that they divide.
      head_dim: head size that does not follow from the width.
    """
    if head_dim:
        require(head_dim % 4 == 0, f"head_dim={head_dim} must be a multiple of 4")
        return
    require(
        width % heads == 0 and (width // heads) % 4 == 0,
        f"heads={heads} must divide width={width} into head sizes that are multiples "
        "of 4",
    )


def grouped_heads(heads: int, kv_heads: int) -> None:
    """Raises `ConfigError` unless query heads share key/value heads evenly."""
    require(heads % kv_heads == 0, f"kv_heads={kv_heads} must divide heads={heads}")
