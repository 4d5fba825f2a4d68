"""`jaxspec bench verify`: passes over trees, in decode steps."""

import argparse

from jaxspec.cli.bench.output import (
    add_lists,
    add_numbers,
    check_numbers,
    check_out,
    command_line,
    read_report,
    write_report,
)
from jaxspec.cli.bench.speed import SUFFIXES, add_speed, shown, speed_options


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "verify",
        help="what verifying trees costs, in decode steps",
        description="Times passes over trees behind half an image, beside a decode "
        "step, and whole rounds with given drafts: what noise, rule, commits and "
        "counters add.",
        epilog="Example: jaxspec bench verify --models gpt-xl --nodes 26 64 "
        "--variants xla pallas --out verify",
    )
    add_speed(parser)
    add_lists(
        parser,
        batches=([1], "images side by side"),
        nodes=([8, 26, 64], "sizes of trees"),
    )
    add_numbers(parser, passes=(16, "in one timed program"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    options = speed_options(arguments)
    check_numbers(arguments, "batches", "nodes", "passes")
    check_out(arguments.out, *SUFFIXES)
    before = read_report(arguments.compare)

    from jaxspec.bench.variants import find_variant
    from jaxspec.bench.verify import KEYS, bench_verify, verify_markdown, verify_plot

    result = bench_verify(
        arguments.models,
        arguments.batches,
        arguments.nodes,
        [find_variant(name) for name in arguments.variants],
        passes_per_run=arguments.passes,
        **options,
    )
    words = shown(arguments, "batches", "nodes", "passes")
    write_report(
        arguments.out,
        command_line("bench verify", words),
        result,
        verify_markdown,
        plot=verify_plot,
        compare=(before, KEYS),
    )
