"""`jaxspec bench stream`: continuous batching against lockstep batches."""

import argparse

from jaxspec.cli.bench.output import (
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
)
from jaxspec.cli.options import add_checkpoint

SUFFIXES = (".json", ".md")
NUMBERS = {
    "num": (32, "pictures"),
    "rows": (8, "pictures side by side"),
    "repeats": (3, "timed runs"),
    "seed": (0, "of pictures, noise and lengths"),
}


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "stream",
        help="rows that take the next prompt, against batches that wait",
        description="Draws the same pictures in lockstep batches and by refilling rows "
        "inside the running loop, all of one length and of lengths that differ.",
        epilog="Example: jaxspec bench stream --rows 8 --num 64 --out docs/reports/x",
    )
    add_checkpoint(parser)
    add_numbers(parser, **NUMBERS)
    parser.add_argument(
        "--waits",
        nargs="+",
        type=int,
        default=[1, 2],
        metavar="N",
        help="idle rows before prompts are read (default: 1 2)",
    )
    parser.add_argument("--tree", metavar="TREE", help="see `jaxspec generate --help`")
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    check_numbers(arguments, "num", "rows", "repeats")
    check_out(arguments.out, *SUFFIXES)

    from jaxspec.bench.streaming import bench_streaming, streaming_markdown
    from jaxspec.bundle import load_bundle
    from jaxspec.helpers import own_helper
    from jaxspec.images import write_file
    from jaxspec.report import json_bytes
    from jaxspec.trees import deepest, default_tree, find_tree

    bundle = load_bundle(arguments.checkpoint)
    helper = own_helper(bundle)
    depth = deepest(helper.drafter)
    tree = default_tree(max_depth=depth)
    if arguments.tree:
        tree = find_tree(arguments.tree, depth)
    rows = bench_streaming(
        bundle,
        tree,
        helper,
        num=arguments.num,
        rows=arguments.rows,
        waits=arguments.waits,
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    options = {name: [getattr(arguments, name)] for name in NUMBERS}
    options["waits"] = arguments.waits
    if arguments.checkpoint:
        options["checkpoint"] = [arguments.checkpoint]
    if arguments.tree:
        options["tree"] = [arguments.tree]
    options["out"] = [arguments.out]
    result = {
        "command": command_line("bench stream", options),
        "checkpoint": bundle.name,
        "num": arguments.num,
        "rows_side_by_side": arguments.rows,
        "nodes": tree.size,
        "rows": rows,
    }
    write_file(arguments.out + ".json", json_bytes(result))
    text = streaming_markdown(result)
    write_file(arguments.out + ".md", text.encode())
    print(text)
