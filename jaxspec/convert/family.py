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
from jaxspec.convert.recorded import Recorded
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
      part: key of the part of the config that is about this model, where the rest is
        about others.
    """

    kind: str
    config: Any
    rules: tuple[Rule, ...]
    heads: Heads = Heads()
    derived: Mapping[str, Derived] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    part: str | None = None


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
    return Heads(config.head_size, config.num_kv_heads, config.heads)


@dataclass(frozen=True)
class Missing:
    """A setting that a source does not tell.

    Attributes:
      meaning: for the message.
      guess: a value with which the plan can go on, to find what else is missing.
    """

    meaning: str
    guess: Any


class MissingSettings(ConfigError):
    """Settings that a source does not tell; the message asks for all of them."""

    def __init__(self, source: str, wanted: Mapping[str, Missing]):
        """`wanted` by the setting's name."""
        self.source, self.wanted = source, dict(wanted)
        lacks = " and ".join(x.meaning for x in wanted.values())
        how = [
            f"--set {key}={'N,N,...' if isinstance(x.guess, tuple) else 'NUMBER'}"
            for key, x in wanted.items()
        ]
        it = "it" if len(wanted) == 1 else "them"
        super().__init__(
            f"'{source}' does not tell {lacks}; give {it} with {' '.join(how)}"
        )

    def with_those_of(self, other: "MissingSettings") -> "MissingSettings":
        """Both in one."""
        return MissingSettings(self.source, {**self.wanted, **other.wanted})


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

    def with_guesses(self, missing: MissingSettings) -> "Settings":
        """The same and guesses for what is missing; what is asked is kept in both."""
        found = Settings({**{k: x.guess for k, x in missing.wanted.items()}, **self})
        found.asked = self.asked
        return found


def setting(
    source: Source, given: Given, key: str, *values: Any, wanted: str, guess: int = 1
) -> int:
    """The user's setting, or the first value that is known: a whole number.

    Raises:
      MissingSettings: there is none.
      ConfigError: it is no such number.
    """
    for value in (given.get(key), *values):
        if value is None:
            continue
        if not _whole(value):
            raise ConfigError(f"'{source.name}': {key}={value!r} is no whole number")
        return value
    raise MissingSettings(source.name, {key: Missing(wanted, guess)})


def numbers(
    source: Source, given: Given, key: str, *values: Any, wanted: str, guess: int = 1
) -> tuple[int, ...]:
    """Like `setting`, for a list of whole numbers.

    Args:
      source: for messages.
      given: the user's settings.
      key: of the setting.
      values: a list, or a number alone, each; None where it is not known.
      wanted: what it means.
      guess: how many there will be.
    """
    for value in (given.get(key), *values):
        if value is None:
            continue
        found = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not found or not all(map(_whole, found)):
            raise ConfigError(
                f"'{source.name}': {key}={value!r} is no list of whole numbers"
            )
        return found
    raise MissingSettings(source.name, {key: Missing(wanted, tuple(range(guess)))})


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


# Entries that change the numbers and no shape, and what we call them.
NUMBERS = {
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_base",
    "num_attention_heads": "heads",
}


def kept(source: Source, cls: type) -> Any:
    """Our own configuration in a source that we exported; None elsewhere.

    Raises:
      ConfigError: it is damaged, or the entries beside it were changed.
    """
    found = source.config.get("jaxspec")
    if found is None:
        return None
    config = from_dict(cls, found.plain() if isinstance(found, Recorded) else found)
    for entry, name in NUMBERS.items():
        mine = getattr(config, name, None)
        if mine is not None:
            where = "its entry 'jaxspec'"
            agree(source, entry, source.config.get(entry), mine, where)
    return config


def agree(
    source: Source, what: str, said: Any, found: Any, where: str = "its tensors"
) -> None:
    """Refuses a config that says one thing where the shapes or the target say another.

    Raises:
      ConfigError: they differ.
    """
    if said is not None and said != found:
        raise ConfigError(
            f"'{source.name}': its config says that {what} is {said}, {where} that "
            f"it is {found}"
        )


def agree_on(
    source: Source, said: Given, found: Given, where: str = "its tensors"
) -> None:
    """`agree` for all keys of `found`.

    Raises:
      ConfigError: one differs.
    """
    for key, value in found.items():
        agree(source, key, said.get(key), value, where)


def only(source: Source, said: Given, known: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses a config with a value that has no counterpart here.

    Args:
      source: for the message.
      said: its config.
      known: values that are known, by key; no value at all is known, too.

    Raises:
      ConfigError: it has another.
    """
    for key, values in known.items():
        value = said.get(key)
        if value is not None and value not in values:
            raise ConfigError(
                f"'{source.name}' has {key}={value!r}, which is not known here"
            )


def count(source: Source, pattern: str) -> int:
    """How many numbers from 0 on have a tensor; `{i}` in the name stands for them."""
    n = 0
    while pattern.replace("{i}", str(n)) in source.tensors:
        n += 1
    return n
