"""Mapping as data: which tensor of theirs is which part of which parameter of ours."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxspec.convert.transforms import TRANSFORMS
from jaxspec.errors import ConfigError

_HOLE = re.compile(r"\{(\w)\}")


@dataclass(frozen=True)
class Rule:
    """Names of theirs and ours that belong together.

    Attributes:
      theirs: a tensor's name; `{i}` stands for a number.
      ours: path of a parameter, with the same numbers.
      transform: a key of `TRANSFORMS`.
      part: which part of the parameter it is, counted from 0.
      parts: how many there are.
      axis: along which they are joined.
    """

    theirs: str
    ours: str
    transform: str = "same"
    part: int = 0
    parts: int = 1
    axis: int = -1

    def __post_init__(self):
        assert self.transform in TRANSFORMS, self.transform
        assert set(_HOLE.findall(self.theirs)) == set(_HOLE.findall(self.ours)), self

    @cached_property
    def pattern(self) -> re.Pattern:
        """Matches names of theirs; its groups are the numbers by letter."""
        text = re.escape(self.theirs).replace(r"\{", "{").replace(r"\}", "}")
        return re.compile(_HOLE.sub(r"(?P<\1>0|[1-9][0-9]{0,5})", text))

    def path(self, name: str) -> str | None:
        """The parameter that a tensor belongs to; None if the rule is not about it."""
        match = self.pattern.fullmatch(name)
        return self.ours.format(**match.groupdict()) if match else None

    def name(self, path: str) -> str | None:
        """The tensor that a parameter comes from; None if the rule is not about it."""
        text = re.escape(self.ours).replace(r"\{", "{").replace(r"\}", "}")
        pattern = _HOLE.sub(r"(?P<\1>[0-9]+)", text)
        match = re.fullmatch(pattern, path)
        return self.theirs.format(**match.groupdict()) if match else None


@dataclass(frozen=True)
class Piece:
    """A tensor in its place.

    Attributes:
      name: of the tensor.
      rule: that placed it.
    """

    name: str
    rule: Rule


def place(
    names: Iterable[str],
    rules: Sequence[Rule],
    ignored: Sequence[str],
    wanted: Mapping[str, tuple[int, ...]],
    source: str,
) -> dict[str, list[Piece]]:
    """The pieces of every parameter, in order.

    Args:
      names: of all tensors.
      rules: each tensor must be the business of one of them.
      ignored: regular expressions of tensors that hold nothing for us.
      wanted: shapes of all parameters, by path.
      source: for the message.

    Raises:
      ConfigError: a tensor has no place, a parameter no tensor, or two have the same
        place; lists all of them.
    """
    found: dict[str, dict[int, Piece]] = defaultdict(dict)
    problems: dict[str, list[str]] = defaultdict(list)
    skip = [re.compile(pattern) for pattern in ignored]
    for name in names:
        if any(pattern.fullmatch(name) for pattern in skip):
            continue
        places = [(rule, path) for rule in rules if (path := rule.path(name))]
        places = [(rule, path) for rule, path in places if path in wanted]
        if not places:
            problems["without a place here"].append(name)
            continue
        for rule, path in places:
            if rule.part in found[path]:
                both = f"{found[path][rule.part].name} and {name}, both for {path}"
                problems["twice"].append(both)
            found[path][rule.part] = Piece(name, rule)
    result = {}
    for path in wanted:
        have = found.get(path, {})
        parts = next(iter(have.values())).rule.parts if have else 1
        if len(have) < parts or not have:
            theirs = [
                r.name(path) for r in rules if r.name(path) and r.part not in have
            ]
            hint = f" ({' or '.join(map(str, theirs[:4]))})" if theirs else ""
            problems["missing"].append(path + hint)
        result[path] = [have[i] for i in sorted(have)]
    if problems:
        raise ConfigError(_complaint(source, problems))
    return result


def _complaint(source: str, problems: Mapping[str, list[str]], most: int = 6) -> str:
    lines = [f"'{source}' does not fit the family:"]
    for what, names in problems.items():
        rest = f", and {len(names) - most} more" if len(names) > most else ""
        lines.append(f"  {what}: {', '.join(names[:most])}{rest}")
    return "\n".join(lines)
