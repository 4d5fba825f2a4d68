"""Conversion of configurations to plain JSON types and back."""

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeVar

from jaxspec.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a frozen configuration to plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Builds the frozen dataclass `cls` from the output of `to_dict`.

    Raises:
      ConfigError: a field is unknown, or its value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected an object, got {values!r}")
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(
            f"{cls.__name__}: unknown field(s) {', '.join(unknown)}; "
            f"known: {', '.join(sorted(hints))}"
        )
    return cls(**{k: coerce_field(cls, k, hints[k], v) for k, v in values.items()})


def coerce_field(cls: type, name: str, hint: Any, value: Any) -> Any:
    """Checks one field against its annotation; lists become tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        for option in args:
            try:
                return coerce_field(cls, name, option, value)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(coerce_field(cls, name, args[0], v) for v in value)
    elif dataclasses.is_dataclass(hint):
        if isinstance(hint, type) and isinstance(value, dict):
            return from_dict(hint, value)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, bool):
        pass
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    kinds: dict[Any, str] = {int: "a whole number", float: "a number", bool: "a bool"}
    kind = kinds.get(hint, f"a valid {hint}")
    raise ConfigError(f"{cls.__name__}.{name}: {value!r} is not {kind}")
