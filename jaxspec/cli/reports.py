"""Options, report files and command lines shared by benchmarks."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def add_out(parser: argparse.ArgumentParser, *suffixes: str) -> None:
    """Adds `--out`.

    Args:
      parser: Parser.
      *suffixes: Suffixes of the written files, at least two.
    """
    names = [f"STEM{suffix}" for suffix in suffixes]
    parser.add_argument(
        "--out",
        required=True,
        metavar="STEM",
        help=f"stem of the files {', '.join(names[:-1])} and {names[-1]}",
    )


def check_out(stem: str, *suffixes: str) -> None:
    """Checks before a benchmark that its report can be written.

    Raises:
      DataError: A file cannot be written.
    """
    from jaxspec.io.writing import check_writable

    for suffix in suffixes:
        check_writable(stem + suffix)


def add_numbers(parser: argparse.ArgumentParser, **numbers: tuple[int, str]) -> None:
    """Adds integer options, as name = (default, help text)."""
    for name, (default, text) in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )


def add_lists(parser: argparse.ArgumentParser, **lists: tuple[list[int], str]) -> None:
    """Adds options of several integers, as name = (defaults, help text)."""
    for name, (default, text) in lists.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            nargs="+",
            default=default,
            metavar="N",
            help=f"{text} (default: {' '.join(map(str, default))})",
        )


def check_numbers(arguments: argparse.Namespace, *names: str, **least: int) -> None:
    """Checks the range of integer options and of lists of integers.

    Args:
      arguments: Parsed arguments.
      *names: Options that must be at least 1.
      **least: Minimum of further options, by name.

    Raises:
      ConfigError: A number is below its minimum or exceeds int32.
    """
    from jaxspec.core.numbers import WHOLE
    from jaxspec.errors import ConfigError

    for name, low in {**dict.fromkeys(names, 1), **least}.items():
        value = getattr(arguments, name)
        for number in value if isinstance(value, list) else [value]:
            if number < low:
                raise ConfigError(f"--{name} {number} must be at least {low}")
            if number > WHOLE:
                raise ConfigError(f"--{name} {number} must be at most {WHOLE}")


def command_line(command: str, options: Mapping[str, Sequence]) -> str:
    """Formats `jaxspec COMMAND` with its options; omits options without values."""
    parts = [f"--{k} {' '.join(map(str, v))}" for k, v in options.items() if v]
    return " ".join(["jaxspec", command, *parts])


def option_values(arguments: argparse.Namespace, *names: str) -> dict[str, Sequence]:
    """Values of options, in the format of `command_line`; None is omitted."""
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
    """Writes `STEM.json`, `STEM.md` and optionally `STEM.png`; prints the table.

    Args:
      stem: Path of the files without suffix.
      command: Command that made the report.
      result: Report.
      markdown: Function that formats the report.
      plot: Function that plots the report.
      compare: Earlier report, and the columns that identify a row; ratios of times to
        those of the earlier report are printed.
    """
    from jaxspec.io.images import png_bytes
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.report import json_bytes

    report = {"command": command, **result}
    write_file(stem + ".json", json_bytes(report))
    text = markdown(report)
    if plot is None:
        write_file(stem + ".md", text.encode())
    else:
        write_file(stem + ".md", with_plot(text, stem).encode())
        write_file(stem + ".png", png_bytes(plot(report)))
    print(text)
    before, keys = compare
    if before is not None:
        from jaxspec.evaluate.tables import comparison_markdown

        print(comparison_markdown(report, before, keys))


def with_plot(markdown: str, stem: str) -> str:
    """Appends the plot `STEM.png` to the text of `STEM.md`."""
    return f"{markdown.rstrip()}\n\n![plot of the table]({Path(stem).name}.png)\n"


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Adds `--compare`."""
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="earlier report (.json): prints the ratios of new to old times",
    )


def read_report(file: str | None) -> dict[str, Any] | None:
    """Reads an earlier report; None without a file.

    Call this before the benchmark, which may overwrite the file.

    Raises:
      DataError: The file has no report.
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
            f"'{file}' is not a report of this benchmark ({type(error).__name__}: "
            f"{error}); pass the .json file of an earlier run"
        ) from None
    return report
