"""Single fields of an experiment, set from text such as `prior.layers=8`."""

import ast
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from jaxspec.config.plain import coerce_field
from jaxspec.errors import ConfigError
from jaxspec.train.experiment import Experiment


def with_overrides(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """The experiment with fields replaced; see `read_settings` and `replaced`."""
    return replaced(experiment, read_settings(settings))


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Values of fields, nested as the configurations are.

    Args:
      settings: texts `PATH=VALUE`, such as "train_prior.batch=32" or
        "drafter.feature_layers=(1, 3)". Values are Python literals, also `true` and
        `false`, or plain words.

    Raises:
      ConfigError: a text is of another form.
    """
    changes: dict[str, Any] = {}
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {text}: write FIELD=VALUE, as in prior.layers=8")
        node = changes
        *parents, name = path.strip().split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {text}: {parent} has a value already")
        node[name] = _literal(value.strip())
    return changes


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.title() if text in ("true", "false") else text)
    except (ValueError, SyntaxError):
        return text


def replaced(config: Any, changes: dict[str, Any], path: str = "") -> Any:
    """A configuration with changed fields; all at once, as they are checked.

    Args:
      config: frozen dataclass.
      changes: values by field, nested as `read_settings` returns them.
      path: path of the configuration in error messages, with a dot at its end.

    Raises:
      ConfigError: there is no such field, or a value does not suit it.
    """
    hints = typing.get_type_hints(type(config))
    known = [field.name for field in dataclasses.fields(config)]
    values = {}
    for name, change in changes.items():
        if name not in known:
            raise ConfigError(
                f"--set {path}{name}: no such field; known: {', '.join(known)}"
            )
        current = getattr(config, name)
        if dataclasses.is_dataclass(current) and isinstance(change, dict):
            values[name] = replaced(current, change, f"{path}{name}.")
        elif isinstance(change, dict):
            raise ConfigError(f"--set {path}{name}: has no fields")
        else:
            values[name] = coerce_field(type(config), name, hints[name], change)
    return dataclasses.replace(config, **values)
