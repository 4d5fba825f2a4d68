"""Interface between model families and the converter.

A `Family` recognizes its files and makes a `Plan`: the configuration of the model, and
rules that map tensor names to parameters. Families that can be exported also make an
`ExportPlan`. The helpers below read and check the entries of a `config.json`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import from_dict
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.sets import PLAIN
from jaxspec.convert.reading.source import Source
from jaxspec.convert.source_config import TrackedConfig
from jaxspec.convert.transforms import Heads
from jaxspec.errors import ConfigError

# Settings given by the user (`--set KEY=VALUE`), which override those of the files.
Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class ComputedParam:
    """A parameter that is computed rather than copied.

    Attributes:
      tensors: names of the tensors that it is computed from.
      compute: function of their arrays, in the stored layout, that returns the
        parameter.
    """

    tensors: tuple[str, ...]
    compute: Callable[..., np.ndarray]


@dataclass(frozen=True)
class Plan:
    """Description of the checkpoint that a source is converted to.

    Attributes:
      kind: kind of the checkpoint, a key of `jaxspec.checkpoint.KINDS`.
      config: configuration of the model; a drafter's contains its target's.
      rules: mapping of tensor names to parameters.
      heads: attention heads, for the transforms.
      computed: computed parameters by path.
      ignored: regular expressions of tensor names that are skipped.
      metadata: additional entries of the checkpoint metadata.
      config_section: key of the section of `config.json` that describes this model,
        if other sections describe other models; None for the whole file.
    """

    kind: str
    config: Any
    rules: tuple[KeyRule, ...]
    heads: Heads = Heads()
    computed: Mapping[str, ComputedParam] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config_section: str | None = None


@dataclass(frozen=True)
class ExportPlan:
    """Description of the files that a checkpoint is exported to.

    Attributes:
      rules: mapping of tensor names to parameters, applied in reverse.
      config: contents of `config.json`. Its entry "jaxspec" is the configuration of
        the model in this library, which `exported_config` reads back.
      heads: attention heads, for the transforms.
      extra_tensors: tensors by name that no rule produces.
      omitted: paths of parameters that are not written, because an extra tensor or an
        entry of the config replaces them.
    """

    rules: tuple[KeyRule, ...]
    config: dict[str, Any]
    heads: Heads = Heads()
    extra_tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    omitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Models whose files have the same layout.

    Attributes:
      name: name for `--family`.
      detect: predicate that recognizes a source by its tensor names and its config.
      plan: function `(source, overrides, target)` that returns the `Plan`. `target` is
        the checkpoint of the model that a drafter was trained for, None for others.
      drafter: whether the models are drafters, which need that target.
      export: function that returns the `ExportPlan` of a checkpoint; None if the
        family cannot be exported.
      weights: names of sets of weights in the order in which the official loader
        looks for them; see `reading.sets`.
    """

    name: str
    detect: Callable[[Source], bool]
    plan: Callable[[Source, Overrides, Checkpoint | None], Plan]
    drafter: bool = False
    export: Callable[[Checkpoint], ExportPlan] | None = None
    weights: tuple[str, ...] = PLAIN


def heads_of(config: Any) -> Heads:
    """Returns the attention heads of a decoder's or drafter's configuration."""
    return Heads(config.head_size, config.num_kv_heads, config.heads)


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


# Entries of config.json that no shape shows, and their names in our configurations.
SHAPELESS = {
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_base",
    "num_attention_heads": "heads",
}


def exported_config(source: Source, cls: type) -> Any:
    """Returns the configuration in files that `export` wrote; None for other files.

    Raises:
      ConfigError: it is damaged, or contradicts other entries of `config.json`.
    """
    values = source.config.get("jaxspec")
    if values is None:
        return None
    if isinstance(values, TrackedConfig):
        values = values.to_dict()
    config = from_dict(cls, values)
    for entry, name in SHAPELESS.items():
        expected = getattr(config, name, None)
        if expected is not None:
            value = source.config.get(entry)
            check_entry(source, entry, value, expected, "its entry 'jaxspec'")
    return config


def check_entry(
    source: Source, key: str, value: Any, expected: Any, origin: str = "its tensors"
) -> None:
    """Compares one entry of `config.json` with the value found elsewhere.

    Args:
      source: source of the model, for the message.
      key: name of the entry.
      value: value of the entry; None if there is none, which is always accepted.
      expected: value found elsewhere.
      origin: description of that place, for the message.

    Raises:
      ConfigError: the values differ.
    """
    if value is not None and value != expected:
        raise ConfigError(
            f"'{source.name}': {key} is {value} in config.json, but {expected} in "
            f"{origin}"
        )


def check_consistent(
    source: Source,
    source_config: Mapping[str, Any],
    expected: Mapping[str, Any],
    origin: str = "its tensors",
) -> None:
    """Applies `check_entry` to all keys of `expected`.

    Raises:
      ConfigError: a value differs.
    """
    for key, value in expected.items():
        check_entry(source, key, source_config.get(key), value, origin)


def check_supported(
    source: Source,
    source_config: Mapping[str, Any],
    supported: Mapping[str, tuple[Any, ...]],
) -> None:
    """Refuses values in `config.json` that have no counterpart in this library.

    Args:
      source: source of the model, for the message.
      source_config: entries of its `config.json`.
      supported: supported values by key; a missing entry or None is always accepted.

    Raises:
      ConfigError: an entry has another value.
    """
    for key, values in supported.items():
        value = source_config.get(key)
        if value is not None and value not in values:
            raise ConfigError(
                f"'{source.name}' has {key}={value!r}, which is not supported"
            )


def count_tensors(source: Source, pattern: str) -> int:
    """Counts tensors numbered 0, 1, ... without a gap; `{i}` is the number."""
    n = 0
    while pattern.replace("{i}", str(n)) in source.tensors:
        n += 1
    return n
