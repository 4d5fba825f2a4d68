"""`jaxspec bench compiled`: programs for devices that are not at hand."""

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
from jaxspec.cli.bench.speed import add_models
from jaxspec.cli.options import add_checkpoint

SUFFIXES = (".json", ".md")


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "compiled",
        help="what compilers make of a step for an H100 or a TPU, without one",
        description="Compiles steps, passes over trees and rounds for devices that are "
        "not at hand, and counts the kernels of each. For TPUs libtpu must be "
        "installed, for an H100 JAX's CUDA plugin; neither needs the device.",
        epilog="Example: jaxspec bench compiled --devices h100 v5e --models gpt-xl "
        "--variants xla pallas --out compiled",
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["h100", "v5e"],
        metavar="NAME",
        help="h100, v5e (default: both)",
    )
    add_checkpoint(parser)
    add_models(parser)
    add_numbers(parser, grid=(24, "tokens along a side, of published sizes"))
    add_lists(
        parser,
        batches=([1], "images side by side"),
        nodes=([26, 64], "sizes of trees"),
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="of weights and caches (default: bfloat16)",
    )
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    check_numbers(arguments, "batches", grid=3, nodes=2)
    check_out(arguments.out, *SUFFIXES)

    from jaxspec.bench.compiled.report import bench_compiled, compiled_markdown
    from jaxspec.bench.variants import find_variant

    result = bench_compiled(
        arguments.devices,
        arguments.models,
        arguments.batches,
        arguments.nodes,
        [find_variant(name) for name in arguments.variants],
        grid=arguments.grid,
        dtype=arguments.dtype,
        checkpoint=arguments.checkpoint,
    )
    names = ("devices", "checkpoint", "models", "grid", "batches", "nodes", "dtype")
    words = option_values(arguments, *names, "variants", "out")
    command = command_line("bench compiled", words)
    write_report(arguments.out, command, result, compiled_markdown)
