"""`jaxspec bench decode`: plain decoding against the bound, and against others."""

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
        "decode",
        help="plain decoding against the memory bound, beside PyTorch",
        description="Times plain decoding, whole and without noise and sampling, "
        "beside the same decoder in PyTorch (eager and torch.compile), where that is "
        "installed, and says how near each is to what the memory allows.",
        epilog="Example: jaxspec bench decode --models gpt-xl --batches 1 8 "
        "--variants xla pallas int8 --out decode",
    )
    add_speed(parser)
    add_lists(parser, batches=([1], "images side by side; rows are twice as many"))
    add_numbers(parser, tokens=(0, "of each image, at most; 0 is all"))
    parser.add_argument(
        "--no-peers", action="store_true", help="leave PyTorch out of it"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
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
        peers=not arguments.no_peers,
        **options,
    )
    command = command_line("bench decode", shown(arguments, "batches", "tokens"))
    command += " --no-peers" * arguments.no_peers
    write_report(
        arguments.out,
        command,
        result,
        decode_markdown,
        plot=decode_plot,
        compare=(before, KEYS),
    )
