"""What a family of models is to the converter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import from_dict
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.sets import PLAIN
from jaxspec.convert.reading.stored import Source
from jaxspec.convert.transforms import Heads
from jaxspec.errors import ConfigError

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Derived:
    """A parameter that is computed.

    Attributes:
      names: tensors that it is computed from.
      make: from their arrays, as stored.
    """

    names: tuple[str, ...]
    make: Callable[..., np.ndarray]


@dataclass(frozen=True)
class Plan:
    """How a source becomes a checkpoint.

    Attributes:
      kind: of the checkpoint.
      config: of the model; a drafter's holds its target's.
      rules: see `Rule`.
      heads: of attention, for the transforms.
      derived: computed parameters by path.
      ignored: regular expressions of tensors that hold nothing for us.
      about: what is worth keeping besides.
    """

    kind: str
    config: Any
    rules: tuple[Rule, ...]
    heads: Heads = Heads()
    derived: Mapping[str, Derived] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outgoing:
    """How a checkpoint becomes a file of a family.

    Attributes:
      rules: see `Rule`.
      config: for `config.json`; "jaxspec" in it is our own configuration, which is
        taken as it is when the file comes back.
      heads: of attention, for the transforms.
      computed: tensors that are no parameter of ours, by name.
      left_out: paths of parameters that those stand for.
    """

    rules: tuple[Rule, ...]
    config: dict[str, Any]
    heads: Heads = Heads()
    computed: Mapping[str, np.ndarray] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Models whose files look alike.

    Attributes:
      name: for `--family`.
      detect: whether a source is one of them, by its names and its config.
      plan: reads the configuration, from the source's own or from shapes; `given` are
        settings that the user made, `target` the checkpoint a drafter was trained for.
      drafter: it needs that target.
      export: how a checkpoint is written in this family's form; None: it is not.
      weights: names of sets of weights, in the order in which the official loader
        looks for them; see `reading.sets`.
    """

    name: str
    detect: Callable[[Source], bool]
    plan: Callable[[Source, Given, Checkpoint | None], Plan]
    drafter: bool = False
    export: Callable[[Checkpoint], Outgoing] | None = None
    weights: tuple[str, ...] = PLAIN


def heads_of(config: Any) -> Heads:
    """Of a decoder or of a drafter that has heads like one."""
    return Heads(config.head_size, config.num_kv_heads)


class Settings(dict[str, Any]):
    """What the user said, and which of it was asked for."""

    def __init__(self, values: Mapping[str, Any]):
        """Nothing was asked for yet."""
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's; remembers the key."""
        self.asked.add(key)
        return super().get(key, default)


def setting(source: Source, given: Given, key: str, *values: Any, wanted: str) -> int:
    """The user's setting, or the first value that is known: a whole number.

    Raises:
      ConfigError: nobody knows; says how to give it. Or it is no such number.
    """
    for value in (given.get(key), *values):
        if value is None:
            continue
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise ConfigError(f"'{source.name}': {key}={value!r} is no whole number")
        return value
    raise ConfigError(
        f"'{source.name}' does not tell {wanted}; give it with --set {key}=NUMBER"
    )


def kept(source: Source, cls: type) -> Any:
    """Our own configuration in a source that we exported; None elsewhere.

    Raises:
      ConfigError: it is damaged.
    """
    found = source.config.get("jaxspec")
    return None if found is None else from_dict(cls, found)


def agree(source: Source, what: str, said: Any, found: Any) -> None:
    """Refuses a config that says one thing where the shapes say another.

    Raises:
      ConfigError: they differ.
    """
    if said is not None and said != found:
        raise ConfigError(
            f"'{source.name}': its config says that {what} is {said}, its tensors that "
            f"it is {found}"
        )


def count(source: Source, pattern: str) -> int:
    """How many numbers from 0 on have a tensor; `{i}` in the name stands for them."""
    n = 0
    while pattern.replace("{i}", str(n)) in source.tensors:
        n += 1
    return n
