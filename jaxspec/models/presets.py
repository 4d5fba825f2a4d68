"""Published sizes by name."""

from collections.abc import Mapping
from typing import TypeVar

from jaxspec.errors import ConfigError

T = TypeVar("T")


def named(presets: Mapping[str, T], name: str) -> T:
    """The configuration of a name.

    Raises:
      ConfigError: there is none.
    """
    if name not in presets:
        known = ", ".join(presets)
        raise ConfigError(f"unknown preset {name!r}; choose one of {known}")
    return presets[name]
