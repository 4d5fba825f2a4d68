"""`jaxspec bench int8`: what rounding matrices to eight bits does."""

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
    "batch": (8, "pictures side by side"),
    "seed": (0, "of pictures and noise"),
}


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "int8",
        help="what eight-bit matrices do to scores and drafts",
        description="Compares scores of a model with those of the same model in eight "
        "bits on pictures that it drew, and draws with both.",
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

    from jaxspec.bench.eight_bits import bench_eight_bits, eight_bits_markdown
    from jaxspec.bundle import load_bundle
    from jaxspec.helpers import own_helper
    from jaxspec.images import write_file
    from jaxspec.report import json_bytes
    from jaxspec.trees import deepest, default_tree, find_tree

    bundle = load_bundle(arguments.checkpoint)
    depth = deepest(own_helper(bundle).drafter)
    tree = default_tree(max_depth=depth)
    if arguments.tree:
        tree = find_tree(arguments.tree, depth)
    options = {name: [getattr(arguments, name)] for name in NUMBERS}
    if arguments.checkpoint:
        options["checkpoint"] = [arguments.checkpoint]
    if arguments.tree:
        options["tree"] = [arguments.tree]
    options["out"] = [arguments.out]
    result = bench_eight_bits(
        bundle,
        load_bundle(arguments.checkpoint, int8=True),
        tree,
        num=arguments.num,
        batch=arguments.batch,
        seed=arguments.seed,
    )
    result = {"command": command_line("bench int8", options), **result}
    write_file(arguments.out + ".json", json_bytes(result))
    text = eight_bits_markdown(result)
    write_file(arguments.out + ".md", text.encode())
    print(text)
