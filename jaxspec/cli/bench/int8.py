"""`jaxspec bench int8`: what rounding matrices to eight bits does."""

import argparse

from jaxspec.cli.bench.output import (
    add_numbers,
    add_out,
    option_values,
    check_numbers,
    check_out,
    command_line,
    write_report,
)
from jaxspec.cli.options import add_checkpoint

SUFFIXES = (".json", ".md")
NUMBERS = {
    "num": (32, "images"),
    "batch": (8, "images side by side"),
    "seed": (0, "of images and noise"),
}


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "int8",
        help="what eight-bit matrices do to scores and drafts",
        description="Compares scores of a model with those of the same model in eight "
        "bits on images that it drew, and samples with both.",
        epilog="Example: jaxspec bench int8 --out docs/reports/fruits64_cpu_int8",
    )
    add_checkpoint(parser)
    add_numbers(parser, **NUMBERS)
    parser.add_argument("--tree", metavar="TREE", help="see `jaxspec generate --help`")
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    check_numbers(arguments, "num", "batch")
    check_out(arguments.out, *SUFFIXES)

    from jaxspec.bench.eight_bits import bench_int8, int8_markdown
    from jaxspec.bundle import load_bundle
    from jaxspec.helpers import bundled_drafter
    from jaxspec.trees import tree_for

    bundle = load_bundle(arguments.checkpoint)
    tree = tree_for(bundled_drafter(bundle).drafter, arguments.tree)
    names = ("checkpoint", *NUMBERS, "tree", "out")
    result = bench_int8(
        bundle,
        load_bundle(arguments.checkpoint, int8=True),
        tree,
        num=arguments.num,
        batch=arguments.batch,
        seed=arguments.seed,
    )
    command = command_line("bench int8", option_values(arguments, *names))
    write_report(arguments.out, command, result, int8_markdown)
