"""`jaxspec bench int8`: effect of int8 weight quantization."""

import argparse

from jaxspec.cli.options import add_checkpoint
from jaxspec.cli.reports import (
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
    option_values,
    write_report,
)

SUFFIXES = (".json", ".md")
NUMBERS = {
    "num": (32, "number of images"),
    "batch": (8, "batch size in images"),
    "seed": (0, "seed of images and noise"),
}


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "int8",
        help="effect of int8 weights on logits and acceptance",
        description="Compares the logits of a model with those of its int8 version on "
        "images that the model generated, and generates images with both.",
        epilog="Example: jaxspec bench int8 --out docs/reports/fruits64_cpu_int8",
    )
    add_checkpoint(parser)
    add_numbers(parser, **NUMBERS)
    parser.add_argument(
        "--tree", metavar="TREE", help="tree, see `jaxspec generate --help`"
    )
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    check_numbers(arguments, "num", "batch")
    check_out(arguments.out, *SUFFIXES)

    from docs.studies.int8 import bench_int8, int8_markdown
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.drafters import bundled_drafter
    from jaxspec.speculative.trees.parsing import tree_for

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
