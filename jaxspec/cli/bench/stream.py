"""`jaxspec bench stream`: continuous batching against lockstep batches."""

import argparse

from jaxspec.cli.bench.output import (
    add_lists,
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
    "rows": (8, "images side by side"),
    "repeats": (3, "timed runs"),
    "seed": (0, "of images, noise and lengths"),
}


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "stream",
        help="rows that take the next prompt, against batches that wait",
        description="Draws the same images in lockstep batches and by refilling rows "
        "inside the running loop, all of one length and of lengths that differ.",
        epilog="Example: jaxspec bench stream --rows 8 --num 64 --out docs/reports/x",
    )
    add_checkpoint(parser)
    add_numbers(parser, **NUMBERS)
    add_lists(parser, waits=([1, 2], "idle rows before prompts are read"))
    parser.add_argument("--tree", metavar="TREE", help="see `jaxspec generate --help`")
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    check_numbers(arguments, "num", "rows", "repeats", "waits")
    check_out(arguments.out, *SUFFIXES)

    from jaxspec.bench.streaming import bench_streaming, streaming_markdown
    from jaxspec.bundle import load_bundle
    from jaxspec.helpers import bundled_drafter
    from jaxspec.trees import tree_for

    bundle = load_bundle(arguments.checkpoint)
    loaded = bundled_drafter(bundle)
    tree = tree_for(loaded.drafter, arguments.tree)
    rows = bench_streaming(
        bundle,
        tree,
        loaded,
        num=arguments.num,
        rows=arguments.rows,
        waits=arguments.waits,
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    names = ("checkpoint", *NUMBERS, "waits", "tree", "out")
    result = {
        "checkpoint": bundle.name,
        "num": arguments.num,
        "rows_side_by_side": arguments.rows,
        "nodes": tree.size,
        "rows": rows,
    }
    command = command_line("bench stream", option_values(arguments, *names))
    write_report(arguments.out, command, result, streaming_markdown)
