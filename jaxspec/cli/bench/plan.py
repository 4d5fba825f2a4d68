"""`jaxspec bench plan`: fastest draft tree on this device."""

import argparse

from jaxspec.cli.options import add_checkpoint, check_scales
from jaxspec.cli.reports import command_line


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "plan",
        help="fastest draft tree on this device",
        description="Counts the accepted ranks of the drafter, times rounds with trees "
        "of several sizes, and recommends the tree with the best expected speed.",
        epilog="Example: jaxspec bench plan --batch 8 --cfg-scale 3",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="batch size in images (default: 1 on CPUs, 8 elsewhere)",
    )
    parser.add_argument(
        "--cfg-scale",
        type=float,
        default=2.0,
        metavar="S",
        help="CFG scale (default: %(default)s)",
    )
    parser.add_argument(
        "--num",
        type=int,
        default=16,
        metavar="N",
        help="number of images to count acceptance on (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes",
        nargs="+",
        type=int,
        metavar="N",
        help="tree sizes to compare (default: 2 to 128)",
    )
    parser.add_argument("--out", metavar="FILE", help="write the numbers as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    from jaxspec.errors import ConfigError
    from jaxspec.io.writing import check_writable

    if arguments.num < 1:
        raise ConfigError(f"--num {arguments.num} must be at least 1")
    if arguments.out:
        check_writable(arguments.out)
    check_scales(arguments.cfg_scale)

    from jaxspec.bench.plan import NODES, plan_text, plan_tree
    from jaxspec.cli.options import table_stream
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.config import GenerationConfig
    from jaxspec.pipeline.prompts import Prompts, spread_classes
    from jaxspec.pipeline.report import json_bytes
    from jaxspec.speculative.trees.parsing import default_batch

    batch = default_batch() if arguments.batch is None else arguments.batch
    bundle = load_bundle(arguments.checkpoint)
    classes = spread_classes(len(bundle.class_names), arguments.num)
    prompts = Prompts.from_classes(classes)
    settings = GenerationConfig(cfg_scale=arguments.cfg_scale, batch_size=batch)
    result = plan_tree(bundle, prompts, settings, nodes=arguments.nodes or NODES)
    if arguments.out:
        options = {
            "checkpoint": [arguments.checkpoint] if arguments.checkpoint else [],
            "batch": [batch],
            "cfg-scale": [f"{arguments.cfg_scale:g}"],
            "num": [arguments.num],
            "nodes": arguments.nodes or [],
            "out": [arguments.out],
        }
        result = {"command": command_line("bench plan", options), **result}
        write_file(arguments.out, json_bytes(result))
    print(plan_text(result), file=table_stream(arguments.out))
