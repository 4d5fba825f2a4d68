"""`jaxspec bench decode`: plain decoding, the memory bound and PyTorch."""

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
        "decode",
        help="plain decoding compared with the memory bound and PyTorch",
        description="Times plain decoding, with and without noise and sampling, and "
        "the same decoder in PyTorch (eager and torch.compile) where that is "
        "installed. Reports the fraction of the memory bound that each achieves.",
        epilog="Example: jaxspec bench decode --models gpt-xl --batches 1 8 "
        "--variants xla pallas int8 --out decode",
    )
    add_speed(parser)
    add_lists(parser, batches=([1], "batch sizes in images; CFG doubles the sequences"))
    add_numbers(parser, tokens=(0, "maximum number of tokens of each image; 0 is all"))
    parser.add_argument(
        "--no-baselines", action="store_true", help="do not measure PyTorch"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    options = speed_options(arguments)
    check_numbers(arguments, "batches", tokens=0)
    check_out(arguments.out, *SUFFIXES)
    before = read_report(arguments.compare)

    from jaxspec.bench.decode import KEYS, bench_decode, decode_markdown, decode_plot
    from jaxspec.bench.variants import find_variant

    result = bench_decode(
        arguments.models,
        arguments.batches,
        [find_variant(name) for name in arguments.variants],
        tokens=arguments.tokens,
        baselines=not arguments.no_baselines,
        **options,
    )
    command = command_line(
        "bench decode", speed_option_values(arguments, "batches", "tokens")
    )
    command += " --no-baselines" * arguments.no_baselines
    write_report(
        arguments.out,
        command,
        result,
        decode_markdown,
        plot=decode_plot,
        compare=(before, KEYS),
    )
