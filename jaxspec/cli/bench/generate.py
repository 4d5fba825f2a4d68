"""`jaxspec bench generate`: speculative against plain decoding."""

import argparse

from jaxspec.cli.bench.output import add_out, check_out, command_line
from jaxspec.cli.options import add_checkpoint

SUFFIXES = (".json", ".md")


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "generate",
        help="speculative against plain decoding",
        description="Measures speculative against plain decoding for every asked "
        "combination of tree, batch and guidance, in one process, after a warm-up, "
        "medians over repeats. Times leave compilation out.",
        epilog="Example: jaxspec bench generate --trees chain-4 naive_extend_57 "
        "--batches 1 8 --cfg-scales 1 2 3 --num 64 --out docs/reports/fruits64",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--trees",
        nargs="+",
        metavar="TREE",
        help="see `jaxspec generate --help` (default: the device's default tree)",
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        type=int,
        default=[8],
        metavar="N",
        help="pictures side by side (default: 8)",
    )
    parser.add_argument(
        "--cfg-scales",
        nargs="+",
        type=float,
        default=[2.0],
        metavar="S",
        help="guidance scales (default: 2)",
    )
    parser.add_argument(
        "--num", type=int, default=64, metavar="N", help="pictures (default: 64)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="timed runs (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from jaxspec.errors import ConfigError

    if arguments.num < 1 or arguments.repeats < 1:
        raise ConfigError("--num and --repeats must be at least 1")
    stem = arguments.out
    check_out(stem, *SUFFIXES)

    from jaxspec.bench.generation import bench_generation, generation_markdown
    from jaxspec.bundle import load_bundle
    from jaxspec.helpers import own_helper
    from jaxspec.images import write_file
    from jaxspec.report import json_bytes
    from jaxspec.trees import deepest, default_tree, find_tree

    for name in arguments.trees or []:  # told before anything is loaded
        find_tree(name)
    bundle = load_bundle(arguments.checkpoint)
    depth = deepest(own_helper(bundle).drafter)
    trees = {"default": default_tree(max_depth=depth)}
    if arguments.trees:
        trees = {name: find_tree(name, depth) for name in arguments.trees}
    options = {
        "checkpoint": [arguments.checkpoint] if arguments.checkpoint else [],
        "trees": arguments.trees or [],
        "batches": arguments.batches,
        "cfg-scales": [f"{scale:g}" for scale in arguments.cfg_scales],
        "num": [arguments.num],
        "repeats": [arguments.repeats],
        "seed": [arguments.seed],
        "out": [stem],
    }
    rows = bench_generation(
        bundle,
        trees,
        arguments.batches,
        arguments.cfg_scales,
        num=arguments.num,
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    command = command_line("bench generate", options)
    result = {"command": command, "checkpoint": bundle.name, "rows": rows}
    write_file(stem + ".json", json_bytes(result))
    text = generation_markdown(result)
    write_file(stem + ".md", text.encode())
    print(text)
