"""Options, files and the shown command that measurements share."""

import argparse
import json
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
    from jaxspec.writing import check_writable

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


def add_lists(parser: argparse.ArgumentParser, **lists: tuple[list[int], str]) -> None:
    """Options of several whole numbers: name = (default, what they count)."""
    for name, (default, words) in lists.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            nargs="+",
            default=default,
            metavar="N",
            help=f"{words} (default: {' '.join(map(str, default))})",
        )


def check_numbers(arguments: argparse.Namespace, *names: str, **least: int) -> None:
    """Refuses numbers, also in lists, below 1 or `least` of their name, or over int32.

    Raises:
      ConfigError: says which.
    """
    from jaxspec.errors import ConfigError
    from jaxspec.spec.numbers import WHOLE

    for name, low in {**dict.fromkeys(names, 1), **least}.items():
        given = getattr(arguments, name)
        for number in given if isinstance(given, list) else [given]:
            if number < low:
                raise ConfigError(f"--{name} {number} must be at least {low}")
            if number > WHOLE:
                raise ConfigError(f"--{name} {number} must be at most {WHOLE}")


def command_line(command: str, options: Mapping[str, Sequence]) -> str:
    """`jaxspec COMMAND` with its options; those without values are left out."""
    words = [f"--{k} {' '.join(map(str, v))}" for k, v in options.items() if v]
    return " ".join(["jaxspec", command, *words])


def option_values(arguments: argparse.Namespace, *names: str) -> dict[str, Sequence]:
    """Options for `command_line`, as they were given or by default."""
    values = {name: getattr(arguments, name.replace("-", "_")) for name in names}
    return {
        name: value if isinstance(value, list) else [value]
        for name, value in values.items()
        if value is not None
    }


def write_report(
    stem: str,
    command: str,
    result: Mapping[str, Any],
    markdown: Callable[[Any], str],
    *,
    plot: Callable[[Any], Any] | None = None,
    compare: tuple[dict[str, Any] | None, Sequence[str]] = (None, ()),
) -> None:
    """Writes `STEM.json`, `STEM.md` and perhaps `STEM.png`, and shows the table.

    Args:
      stem: of the files.
      command: that made the report.
      result: its numbers.
      markdown: makes the table of them.
      plot: makes an image of them.
      compare: an earlier report, and the columns that tell rows apart; how times
        changed is shown.
    """
    from jaxspec.images import png_bytes
    from jaxspec.report import json_bytes
    from jaxspec.writing import write_file

    whole = {"command": command, **result}
    write_file(stem + ".json", json_bytes(whole))
    text = markdown(whole)
    write_file(stem + ".md", text.encode())
    if plot is not None:
        write_file(stem + ".png", png_bytes(plot(whole)))
    print(text)
    before, keys = compare
    if before is not None:
        from jaxspec.bench.tables import comparison_markdown

        print(comparison_markdown(whole, before, keys))


def add_compare(parser: argparse.ArgumentParser) -> None:
    """`--compare`."""
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="an earlier report (.json): prints time now over time then",
    )


def read_report(file: str | None) -> dict[str, Any] | None:
    """An earlier report; None without a file. Read it before a new one replaces it.

    Raises:
      DataError: there is none in that file.
    """
    from jaxspec.errors import DataError

    if file is None:
        return None
    try:
        with open(file, "rb") as opened:
            report = json.load(opened)
        _ = [row["seconds"] for row in report["rows"]], report["device"]
        _ = report["versions"]["jax"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{file}' is no report of this measurement ({type(error).__name__}: "
            f"{error}); name the .json that an earlier run wrote"
        ) from None
    return report
