"""Rules that map tensor names of a released layout to parameter paths."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxspec.convert.transforms import TRANSFORMS
from jaxspec.errors import ConfigError

_PLACEHOLDER = re.compile(r"\{(\w)\}")


@dataclass(frozen=True)
class KeyRule:
    """A tensor name and the parameter that the tensor becomes, or becomes a part of.

    Attributes:
      source: name of the tensor; `{i}` stands for a number.
      target: path of the parameter, with the same placeholders.
      transform: key of `TRANSFORMS`.
      part: index of the part of the parameter that the tensor holds.
      parts: number of tensors that are concatenated to the parameter.
      axis: axis of the parameter along which they are concatenated.
    """

    source: str
    target: str
    transform: str = "same"
    part: int = 0
    parts: int = 1
    axis: int = -1

    def __post_init__(self):
        assert self.transform in TRANSFORMS, self.transform
        source, target = map(_PLACEHOLDER.findall, (self.source, self.target))
        assert set(source) == set(target), self

    @cached_property
    def pattern(self) -> re.Pattern:
        """Pattern of the tensor names; its groups are the numbers, by letter."""
        text = re.escape(self.source).replace(r"\{", "{").replace(r"\}", "}")
        return re.compile(_PLACEHOLDER.sub(r"(?P<\1>0|[1-9][0-9]{0,5})", text))

    def target_path(self, name: str) -> str | None:
        """Returns the path of a tensor's parameter; None if the name does not match."""
        match = self.pattern.fullmatch(name)
        return self.target.format(**match.groupdict()) if match else None

    def source_name(self, path: str) -> str | None:
        """Returns the name of a parameter's tensor; None if the path does not match."""
        text = re.escape(self.target).replace(r"\{", "{").replace(r"\}", "}")
        pattern = _PLACEHOLDER.sub(r"(?P<\1>[0-9]+)", text)
        match = re.fullmatch(pattern, path)
        return self.source.format(**match.groupdict()) if match else None


@dataclass(frozen=True)
class MappedTensor:
    """A tensor and the rule that maps it.

    Attributes:
      name: name of the tensor.
      rule: rule that matched it.
    """

    name: str
    rule: KeyRule


def assign_tensors(
    names: Iterable[str],
    rules: Sequence[KeyRule],
    ignored: Sequence[str],
    paths: Iterable[str],
    source: str,
) -> dict[str, list[MappedTensor]]:
    """Assigns every tensor to a parameter.

    Args:
      names: names of all tensors.
      rules: rules of the family; each tensor must match one of them.
      ignored: regular expressions of tensor names that are skipped.
      paths: paths of all parameters.
      source: name of the source, for the message.

    Returns:
      The tensors of each parameter, in the order of their parts.

    Raises:
      ConfigError: a tensor matches no rule, a parameter lacks a tensor, or two tensors
        are the same part of a parameter; the message lists all of these.
    """
    paths = list(paths)
    known_paths = set(paths)
    assigned: dict[str, dict[int, MappedTensor]] = defaultdict(dict)
    problems: dict[str, list[str]] = defaultdict(list)
    skip = [re.compile(pattern) for pattern in ignored]
    for name in names:
        if any(pattern.fullmatch(name) for pattern in skip):
            continue
        matches = [(rule, path) for rule in rules if (path := rule.target_path(name))]
        matches = [(rule, path) for rule, path in matches if path in known_paths]
        if not matches:
            problems["not mapped to a parameter"].append(name)
            continue
        for rule, path in matches:
            if rule.part in assigned[path]:
                other = assigned[path][rule.part].name
                problems["mapped twice"].append(f"{other} and {name}, both to {path}")
            assigned[path][rule.part] = MappedTensor(name, rule)
    result = {}
    for path in paths:
        parts = assigned.get(path, {})
        num_parts = next(iter(parts.values())).rule.parts if parts else 1
        if len(parts) < num_parts or not parts:
            candidates = [
                rule.source_name(path)
                for rule in rules
                if rule.source_name(path) and rule.part not in parts
            ]
            hint = f" ({' or '.join(map(str, candidates[:4]))})" if candidates else ""
            problems["missing"].append(path + hint)
        result[path] = [parts[i] for i in sorted(parts)]
    if problems:
        raise ConfigError(_mismatch_message(source, problems))
    return result


def _mismatch_message(
    source: str, problems: Mapping[str, list[str]], limit: int = 6
) -> str:
    lines = [f"'{source}' does not fit the family:"]
    for problem, names in problems.items():
        rest = f", and {len(names) - limit} more" if len(names) > limit else ""
        lines.append(f"  {problem}: {', '.join(names[:limit])}{rest}")
    return "\n".join(lines)
