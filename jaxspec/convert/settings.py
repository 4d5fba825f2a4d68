"""Settings of a model: given by the user, or inferred from the files.

A family raises `MissingSettings` at the first setting that it cannot infer. Planning
then continues with a placeholder, so that one error asks for all missing settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxspec.checkpoint import KINDS, Checkpoint
from jaxspec.config import from_dict, to_dict
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.reading.source import Source, printable
from jaxspec.errors import ConfigError, JaxspecError


@dataclass(frozen=True)
class RequiredSetting:
    """A setting that cannot be inferred from a source.

    Attributes:
      description: noun phrase for the error message.
      placeholder: value with which planning continues, to find other settings that
        are missing.
    """

    description: str
    placeholder: Any


class MissingSettings(ConfigError):
    """Error that asks for all settings that cannot be inferred from a source."""

    def __init__(self, source: str, required: Mapping[str, RequiredSetting]):
        """Builds the message; `required` maps names of settings to descriptions."""
        self.source, self.required = source, dict(required)
        descriptions = " and ".join(x.description for x in required.values())
        options = [
            f"--set {key}={'N,N,...' if isinstance(x.placeholder, tuple) else 'NUMBER'}"
            for key, x in required.items()
        ]
        super().__init__(
            f"cannot infer {descriptions} from '{source}'; add {' '.join(options)}"
        )

    def merged_with(self, other: "MissingSettings") -> "MissingSettings":
        """Returns one error for the settings of both."""
        return MissingSettings(self.source, {**self.required, **other.required})


class SourceSettings(dict[str, Any]):
    """Settings given by the user; records the keys that a family looked up."""

    def __init__(self, values: Mapping[str, Any]):
        """Copies the values; no key has been looked up yet."""
        super().__init__(values)
        self.requested: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value like `dict.get`, and records the key."""
        self.requested.add(key)
        return super().get(key, default)

    def with_placeholders(self, missing: MissingSettings) -> "SourceSettings":
        """Returns a copy with placeholders; both share the record of keys."""
        placeholders = {key: x.placeholder for key, x in missing.required.items()}
        settings = SourceSettings({**placeholders, **self})
        settings.requested = self.requested
        return settings


def infer_setting(
    source: Source,
    overrides: Overrides,
    key: str,
    *values: Any,
    description: str,
    placeholder: int = 1,
) -> int:
    """Returns the user's value of a setting, else the first known one: an integer.

    Args:
      source: source of the model, for messages.
      overrides: settings given by the user.
      key: name of the setting.
      values: inferred values in order of preference; None where one is unknown.
      description: noun phrase for the message if no value is known.
      placeholder: value with which planning continues then.

    Raises:
      MissingSettings: no value is known.
      ConfigError: the value is not a nonnegative integer.
    """
    for value in (overrides.get(key), *values):
        if value is None:
            continue
        if not _is_natural(value):
            raise ConfigError(f"'{source.name}': {key}={value!r} is no whole number")
        return value
    raise MissingSettings(source.name, {key: RequiredSetting(description, placeholder)})


def infer_numbers(
    source: Source,
    overrides: Overrides,
    key: str,
    *values: Any,
    description: str,
    length: int = 1,
) -> tuple[int, ...]:
    """Returns a list of integers, by the same rule as `infer_setting`.

    Args:
      source: source of the model, for messages.
      overrides: settings given by the user.
      key: name of the setting.
      values: inferred values in order of preference, each a list or a single number;
        None where one is unknown.
      description: noun phrase for the message if no value is known.
      length: number of elements of the placeholder.

    Raises:
      MissingSettings: no value is known.
      ConfigError: the value is not a list of nonnegative integers.
    """
    for value in (overrides.get(key), *values):
        if value is None:
            continue
        result = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not result or not all(map(_is_natural, result)):
            raise ConfigError(
                f"'{source.name}': {key}={value!r} is no list of whole numbers"
            )
        return result
    placeholder = tuple(range(length))
    raise MissingSettings(source.name, {key: RequiredSetting(description, placeholder)})


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def count_tensors(source: Source, pattern: str) -> int:
    """Counts tensors numbered 0, 1, ... without a gap; `{i}` is the number."""
    n = 0
    while pattern.replace("{i}", str(n)) in source.tensors:
        n += 1
    return n


def make_plan(
    source: Source, family: Family, overrides: Overrides, target: Checkpoint | None
) -> Plan:
    """Returns the family's plan for a source.

    Args:
      source: source of the model.
      family: family of the source.
      overrides: settings given by the user.
      target: checkpoint of the model that a drafter was trained for.

    Raises:
      MissingSettings: settings cannot be inferred; the message lists all of them.
      ConfigError: the source's config or shapes are invalid for the family.
    """
    if isinstance(overrides, SourceSettings):
        settings = overrides
    else:
        settings = SourceSettings(overrides)
    missing = MissingSettings(source.name, {})
    while True:
        try:
            plan = _try_plan(
                source, family, settings.with_placeholders(missing), target
            )
            break
        except MissingSettings as error:
            missing = missing.merged_with(error)
        except JaxspecError:
            if not missing.required:
                raise
            break  # a placeholder does not fit; report the missing settings first
    if missing.required:
        raise missing
    return plan


def _try_plan(
    source: Source, family: Family, overrides: Overrides, target: Checkpoint | None
) -> Plan:
    try:
        plan = family.plan(source, overrides, target)
        from_dict(KINDS[plan.kind], to_dict(plan.config))  # checks the type of fields
    except JaxspecError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(
            f"'{source.name}': its config.json or its shapes are invalid for "
            f"{family.name} ({type(e).__name__}: {printable(str(e))}); check that the "
            "files belong together, or choose another --family"
        ) from None
    return plan
