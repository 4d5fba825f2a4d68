"""`jaxspec bench`: benchmarks, derived from their descriptions."""

import argparse
from typing import Any

from jaxspec.bench.description import Benchmark, Option, load
from jaxspec.bench.registry import BENCHMARKS, PLAN
from jaxspec.cli.help import rare
from jaxspec.cli.options import table_stream
from jaxspec.cli.reports import (
    add_compare,
    add_out,
    check_out,
    read_json,
    read_report,
    write_numbers,
    write_report,
    write_tables,
)

METAVARS = {int: "N", float: "X", str: "NAME"}


def add_parser(commands) -> None:
    """Adds the parser of the command."""
    parser = commands.add_parser(
        "bench",
        help="run benchmarks and write reports",
        description="Runs a benchmark and writes its report to files.",
        epilog="Options of a benchmark: jaxspec bench generate --help",
    )
    parser.add_argument(
        "--plan", action="store_true", help="run `plan` with its defaults"
    )
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK")
    for benchmark in BENCHMARKS:
        subparser = benchmarks.add_parser(
            benchmark.name,
            help=benchmark.summary,
            description=benchmark.description,
            epilog=benchmark.example,
        )
        add_options(subparser, benchmark)

    def run(arguments) -> None:
        if not arguments.plan:
            parser.error("choose a benchmark: " + ", ".join(benchmarks.choices))
        run_benchmark(PLAN, benchmarks.choices["plan"].parse_args([]))

    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser, benchmark: Benchmark) -> None:
    """Adds the options of a benchmark, and sets its `run`."""
    for option in benchmark.options:
        _add_option(parser, option)
    if benchmark.resumes:
        parser.add_argument(
            "--resume",
            action="store_true",
            help="keep the rows of STEM.json and measure only missing ones",
        )
    if benchmark.identity:
        add_compare(parser)
    if benchmark.output == "file":
        parser.add_argument("--out", metavar="FILE", help="write the numbers as JSON")
    else:
        add_out(parser, *benchmark.suffixes)
    parser.set_defaults(run=lambda arguments: run_benchmark(benchmark, arguments))


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    name, text = f"--{option.name}", option.full_help.replace("%", "%%")
    text = rare(text) if option.rare else text
    if option.kind is bool:
        parser.add_argument(name, action="store_true", help=text)
        return
    parser.add_argument(
        name,
        type=option.kind,
        nargs="+" if option.several else None,
        choices=option.choices or None,
        metavar=None if option.choices else option.metavar or METAVARS[option.kind],
        help=text,
    )


def run_benchmark(benchmark: Benchmark, arguments: argparse.Namespace) -> None:
    """Checks the options, runs the benchmark, writes and prints its report.

    Raises:
      ConfigError: An option is out of range.
      DataError: A file cannot be read or written.
    """
    values = benchmark.values(vars(arguments))
    out = arguments.out
    if out:
        check_out(out, *benchmark.suffixes)
    before = read_report(getattr(arguments, "compare", None))
    head = {"command": benchmark.command(values, out)}

    def save(part: dict[str, Any]) -> None:
        """Writes an unfinished report; the run may be stopped before its end."""
        write_tables(out, {**head, **part}, load(benchmark.markdown))

    keywords: dict[str, Any] = {"save": save} if benchmark.saves else {}
    if benchmark.resumes and arguments.resume:
        keywords["earlier"] = read_json(out + ".json")
    result = load(benchmark.measure)(**values, **keywords)
    markdown = load(benchmark.markdown)
    if benchmark.output == "file":
        if out:
            write_numbers(out, {**head, **result})
        print(markdown(result), file=table_stream(out))
        return
    write_report(
        out,
        head["command"],
        result,
        markdown,
        plot=load(benchmark.plot) if benchmark.plot else None,
        compare=(before, benchmark.identity),
    )
