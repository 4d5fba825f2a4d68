"""Descriptions of benchmarks: options, functions and report files.

The parser of the command line, the command that a report names and the sections of
`bench hardware` come from them. Imports neither JAX nor models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from jaxspec.errors import ConfigError

# A function, or "module:name", which is imported when it is called.
Reference = str | Callable[..., Any]


@dataclass(frozen=True)
class Option:
    """Option of a benchmark.

    Attributes:
      name: Name on the command line, without dashes in front.
      help: Help text, without the default.
      kind: Type of a value; bool for a flag.
      default: Default value; a tuple for several values.
      several: Whether the option takes several values.
      metavar: Name of a value in the help text; None for that of its type.
      choices: Allowed values; empty for all.
      default_text: Description of the default; empty for its value.
      least: Minimum of an integer; None for options that are checked elsewhere.
      cfg_scale: Whether the values are CFG scales.
      rare: Whether only `--help-all` shows the option.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    several: bool = False
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    default_text: str = ""
    least: int | None = None
    cfg_scale: bool = False
    rare: bool = False

    @property
    def key(self) -> str:
        """Name of the function's argument."""
        return self.name.replace("-", "_")

    @property
    def full_help(self) -> str:
        """Help text with the default."""
        text = self.default_text or " ".join(self.words(self.default))
        return f"{self.help} (default: {text})" if text else self.help

    def words(self, value: Any) -> list[str]:
        """Words of a value on the command line; empty for None and False."""
        if value is None or self.kind is bool:
            return []
        values = value if self.several else [value]
        return [f"{x:g}" if self.kind is float else str(x) for x in values]

    def on_command_line(self, value: Any) -> list[str]:
        """The option with a value, in words; empty where there is nothing to give."""
        words = self.words(value)
        return [f"--{self.name}", *words] if words or value is True else []

    def check(self, value: Any) -> None:
        """Checks the range of a value.

        Raises:
          ConfigError: A number is below its minimum or exceeds int32, or a CFG scale is
            out of range.
        """
        if value is None or (self.least is None and not self.cfg_scale):
            return
        from jaxspec.core.numbers import WHOLE, within

        for number in value if self.several else [value]:
            if self.cfg_scale:
                within("cfg_scale", number)
                continue
            if self.least is not None and number < self.least:
                raise ConfigError(
                    f"--{self.name} {number} must be at least {self.least}"
                )
            if number > WHOLE:
                raise ConfigError(f"--{self.name} {number} must be at most {WHOLE}")


@dataclass(frozen=True)
class Benchmark:
    """Benchmark with its options and its report.

    Attributes:
      name: Name on the command line.
      summary: One line for the list of benchmarks.
      description: Description in the help text.
      example: End of the help text.
      options: Options, without `--resume`, `--compare` and `--out`.
      measure: Function that takes the options as keywords and returns the report.
      markdown: Function that formats a report.
      plot: Function that plots a report; None for reports without a plot.
      identity: Columns that identify a row, for `--compare`; empty for benchmarks
        without it.
      saves: Whether `measure` takes `save`, a callback for unfinished reports.
      resumes: Whether `measure` takes `earlier`, an unfinished report to continue, for
        `--resume`.
      output: Files of `--out`: "stem" for STEM.json, STEM.md and perhaps STEM.png,
        "file" for an optional JSON file.
      program: Command without options; empty for that of the command line.
    """

    name: str
    summary: str
    description: str
    example: str
    options: tuple[Option, ...]
    measure: Reference
    markdown: Reference
    plot: Reference | None = None
    identity: tuple[str, ...] = ()
    saves: bool = False
    resumes: bool = False
    output: Literal["stem", "file"] = "stem"
    program: str = ""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the written files."""
        if self.output == "file":
            return ("",)
        return (".json", ".md", ".png") if self.plot else (".json", ".md")

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values of all options, as keywords of `measure`.

        Args:
          given: Values by key; others have their defaults.

        Raises:
          ConfigError: A value is out of range.
        """
        values = {option.key: given.get(option.key) for option in self.options}
        for option in self.options:
            if values[option.key] is None:
                default = option.default
                values[option.key] = (
                    list(default) if option.several and default else default
                )
            option.check(values[option.key])
        return values

    def command(self, values: Mapping[str, Any], out: str | None = None) -> str:
        """Command line that runs the benchmark with some values."""
        parts = [self.program or f"jaxspec bench {self.name}"]
        for option in self.options:
            parts += option.on_command_line(values[option.key])
        return " ".join(parts + (["--out", out] if out else []))


def load(reference: Reference) -> Callable[..., Any]:
    """Imports a function that is given as "module:name"."""
    if not isinstance(reference, str):
        return reference
    module, name = reference.split(":")
    return getattr(import_module(module), name)
