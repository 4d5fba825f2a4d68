"""Options, files and the shown command that measurements share."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def add_out(parser: argparse.ArgumentParser, *suffixes: str) -> None:
    """`--out`."""
    names = [f"STEM{suffix}" for suffix in suffixes]
    parser.add_argument(
        "--out",
        required=True,
        metavar="STEM",
        help=f"writes {', '.join(names[:-1])} and {names[-1]}",
    )


def check_out(stem: str, *suffixes: str) -> None:
    """Fails before the measurement where writing would fail after it.

    Raises:
      DataError: a file cannot be written.
    """
    from jaxspec.images import check_writable

    for suffix in suffixes:
        check_writable(stem + suffix)


def add_numbers(parser: argparse.ArgumentParser, **numbers: tuple[int, str]) -> None:
    """Whole-number options: name = (default, what it counts)."""
    for name, (default, words) in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"{words} (default: %(default)s)",
        )


def check_numbers(arguments: argparse.Namespace, *names: str, **least: int) -> None:
    """Refuses numbers below 1, or below `least` of their name.

    Raises:
      ConfigError: says which.
    """
    from jaxspec.errors import ConfigError

    for name, low in {**dict.fromkeys(names, 1), **least}.items():
        number = getattr(arguments, name)
        if number < low:
            raise ConfigError(f"--{name} {number} must be at least {low}")


def command_line(command: str, options: Mapping[str, Sequence]) -> str:
    """`jaxspec COMMAND` with its options; those without values are left out."""
    words = [f"--{k} {' '.join(map(str, v))}" for k, v in options.items() if v]
    return " ".join(["jaxspec", command, *words])


def asked(arguments: argparse.Namespace, *names: str) -> dict[str, Sequence]:
    """Options for `command_line`, as they were given or by default."""
    values = {name: getattr(arguments, name.replace("-", "_")) for name in names}
    return {
        name: value if isinstance(value, list) else [value]
        for name, value in values.items()
        if value is not None
    }


def write_report(
    stem: str, command: str, result: Mapping[str, Any], markdown: Callable[[Any], str]
) -> None:
    """Writes `STEM.json` and `STEM.md`, and shows the latter."""
    from jaxspec.images import write_file
    from jaxspec.report import json_bytes

    whole = {"command": command, **result}
    write_file(stem + ".json", json_bytes(whole))
    text = markdown(whole)
    write_file(stem + ".md", text.encode())
    print(text)
