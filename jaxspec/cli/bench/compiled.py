"""`jaxspec bench compiled`: ahead-of-time compilation for other devices."""

import argparse

from jaxspec.cli.bench.speed import add_models
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


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "compiled",
        help="kernels of compiled steps for an H100 or a TPU, without the device",
        description="Compiles decode steps, passes over draft trees and rounds for "
        "devices that are not present, and counts the kernels of each. TPUs need the "
        "package libtpu, an H100 needs JAX's CUDA plugin.",
        epilog="Example: jaxspec bench compiled --devices h100 v5e --models gpt-xl "
        "--variants xla pallas --out compiled",
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["h100", "v5e"],
        metavar="NAME",
        help="devices: h100, v5e (default: both)",
    )
    add_checkpoint(parser)
    add_models(parser)
    add_numbers(parser, grid=(24, "tokens along a side, for published sizes"))
    add_lists(
        parser,
        batches=([1], "batch sizes in images"),
        nodes=([26, 64], "tree sizes"),
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="dtype of weights and caches (default: bfloat16)",
    )
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    check_numbers(arguments, "batches", grid=3, nodes=2)
    check_out(arguments.out, *SUFFIXES)

    from docs.studies.compiled.report import bench_compiled, compiled_markdown
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
    values = option_values(arguments, *names, "variants", "out")
    command = command_line("bench compiled", values)
    write_report(arguments.out, command, result, compiled_markdown)
