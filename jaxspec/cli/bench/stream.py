"""`jaxspec bench stream`: continuous batching and lockstep batches."""

import argparse

from jaxspec.cli.options import add_checkpoint
from jaxspec.cli.reports import (
    add_lists,
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
    "repeats": (3, "number of timed runs"),
    "seed": (0, "seed of images, noise and lengths"),
}


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "stream",
        help="continuous batching compared with lockstep batches",
        description="Generates the same images in lockstep batches and with continuous "
        "batching, for jobs of equal and of different lengths.",
        epilog="Example: jaxspec bench stream --batch 8 --num 64 --out docs/reports/x",
    )
    add_checkpoint(parser)
    add_numbers(parser, **NUMBERS)
    add_lists(parser, waits=([1, 2], "numbers of idle sequences before a refill"))
    parser.add_argument(
        "--tree", metavar="TREE", help="tree, see `jaxspec generate --help`"
    )
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    check_numbers(arguments, "num", "batch", "repeats", "waits")
    check_out(arguments.out, *SUFFIXES)

    from jaxspec.bench.streaming import bench_streaming, streaming_markdown
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.drafters import bundled_drafter
    from jaxspec.speculative.trees.parsing import tree_for

    bundle = load_bundle(arguments.checkpoint)
    loaded = bundled_drafter(bundle)
    tree = tree_for(loaded.drafter, arguments.tree)
    rows = bench_streaming(
        bundle,
        tree,
        loaded,
        num=arguments.num,
        batch=arguments.batch,
        waits=arguments.waits,
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    names = ("checkpoint", *NUMBERS, "waits", "tree", "out")
    result = {
        "checkpoint": bundle.name,
        "num": arguments.num,
        "batch": arguments.batch,
        "nodes": tree.size,
        "rows": rows,
    }
    command = command_line("bench stream", option_values(arguments, *names))
    write_report(arguments.out, command, result, streaming_markdown)
