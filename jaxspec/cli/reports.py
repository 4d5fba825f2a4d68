"""Options and files of reports, for `jaxspec bench` and `jaxspec eval images`."""

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
    report = {"command": command, **result}
    text = write_tables(stem, report, markdown, plot=plot is not None)
    if plot is not None:
        from jaxspec.io.images import png_bytes
        from jaxspec.io.writing import write_file

        write_file(stem + ".png", png_bytes(plot(report)))
    print(text)
    before, identity = compare
    if before is not None:
        from jaxspec.evaluate.tables import comparison_markdown

        print(comparison_markdown(report, before, identity))


def write_tables(
    stem: str,
    report: Mapping[str, Any],
    markdown: Callable[[Any], str],
    *,
    plot: bool = False,
) -> str:
    """Writes `STEM.json` and `STEM.md`; returns the text without the plot.

    Args:
      stem: Path of the files without suffix.
      report: Report with "command".
      markdown: Function that formats the report.
      plot: Whether the text ends with the plot `STEM.png`.
    """
    from jaxspec.io.writing import write_file

    write_numbers(stem + ".json", report)
    text = markdown(report)
    write_file(stem + ".md", (with_plot(text, stem) if plot else text).encode())
    return text


def write_numbers(file: str, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON."""
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.report import json_bytes

    write_file(file, json_bytes(dict(report)))


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


def read_json(file: str) -> Any:
    """Reads a JSON file; None if it does not exist.

    Raises:
      DataError: The file cannot be read.
    """
    from jaxspec.errors import DataError

    try:
        return json.loads(Path(file).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot resume from '{file}' ({error!r}); write to another --out"
        ) from None
