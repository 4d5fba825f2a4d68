"""`jaxspec bench train`: training throughput and utilization."""

import argparse

from jaxspec.cli.bench.speed import (
    SUFFIXES,
    add_speed,
    speed_option_values,
    speed_options,
)
from jaxspec.cli.reports import (
    add_numbers,
    check_numbers,
    check_out,
    command_line,
    read_report,
    write_report,
)

PARTS = ("prior", "drafter")


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "train",
        help="training steps: tokens per second, model-FLOPs utilization",
        description="Times steps of `jaxspec train` on random tokens, for a prior and "
        "for a block drafter.",
        epilog="Example: jaxspec bench train --models gpt-b --grid 16 --batch 64 "
        "--out train",
    )
    add_speed(parser, variants=False, repeats=3)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="trained parts (default: both)",
    )
    add_numbers(
        parser, batch=(16, "sequences per step"), steps=(3, "steps per timed run")
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    options = speed_options(arguments)
    check_numbers(arguments, "batch", "steps")
    check_out(arguments.out, *SUFFIXES)
    before = read_report(arguments.compare)

    from jaxspec.bench.training import (
        KEYS,
        bench_training,
        training_markdown,
        training_plot,
    )

    result = bench_training(
        arguments.models,
        arguments.parts,
        arguments.batch,
        steps=arguments.steps,
        **options,
    )
    values = speed_option_values(arguments, "parts", "batch", "steps")
    write_report(
        arguments.out,
        command_line("bench train", values),
        result,
        training_markdown,
        plot=training_plot,
        compare=(before, KEYS),
    )
