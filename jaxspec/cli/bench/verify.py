"""`jaxspec bench verify`: cost of verifying draft trees, in decode steps."""

import argparse

from jaxspec.cli.bench.speed import (
    SUFFIXES,
    add_speed,
    speed_option_values,
    speed_options,
)
from jaxspec.cli.reports import (
    add_lists,
    add_numbers,
    check_numbers,
    check_out,
    command_line,
    read_report,
    write_report,
)


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "verify",
        help="cost of verifying draft trees, in decode steps",
        description="Times forward passes over draft trees with caches filled by half "
        "an image, relative to a decode step, and whole rounds with fixed drafts, "
        "which add noise, verifier, commits and counters.",
        epilog="Example: jaxspec bench verify --models gpt-xl --nodes 26 64 "
        "--variants xla pallas --out verify",
    )
    add_speed(parser)
    add_lists(
        parser,
        batches=([1], "batch sizes in images"),
        nodes=([8, 26, 64], "tree sizes"),
    )
    add_numbers(parser, passes=(16, "passes in one timed program"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
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
    values = speed_option_values(arguments, "batches", "nodes", "passes")
    write_report(
        arguments.out,
        command_line("bench verify", values),
        result,
        verify_markdown,
        plot=verify_plot,
        compare=(before, KEYS),
    )
