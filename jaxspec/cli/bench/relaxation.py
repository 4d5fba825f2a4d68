"""`jaxspec bench relaxation`: what relaxed rules do to the law of one token."""

import argparse

from jaxspec.cli.bench.output import (
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
)
from jaxspec.cli.options import add_checkpoint

SUFFIXES = (".json", ".md", ".png")
NUMBERS = {
    "toys": (8, "positions of each toy setting"),
    "images": (16, "positions of the checkpoint, one in each image"),
    "drafts": (4096, "drafts of several children at a position, a power of 2"),
    "samples": (1 << 19, "samples of the noise for several children"),
}


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "relaxation",
        help="acceptance and distortion of relaxed rules, ours and LANTERN",
        description="Computes how often relaxed rules follow a drafted token, and how "
        "far the law of the emitted token is from the target's, in two toys and in "
        "the checkpoint, for one and for three children. Takes minutes.",
        epilog="Example: jaxspec bench relaxation --out docs/reports/relaxation_cpu",
    )
    add_checkpoint(parser)
    add_numbers(parser, **NUMBERS, seed=(0, "of images, drafts and noise"))
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from pathlib import Path

    from jaxspec.errors import ConfigError

    check_numbers(arguments, *NUMBERS, seed=0)
    numbers = {name: getattr(arguments, name) for name in NUMBERS}
    if arguments.drafts.bit_count() != 1:
        raise ConfigError(f"--drafts {arguments.drafts} must be a power of 2")
    stem = arguments.out
    check_out(stem, *SUFFIXES)

    from jaxspec.bench.relaxation import (
        measure_relaxation,
        relaxation_markdown,
        relaxation_plot,
    )
    from jaxspec.bundle import load_bundle
    from jaxspec.report import json_bytes
    from jaxspec.writing import write_file

    changed = {k: [v] for k, v in numbers.items() if v != NUMBERS[k][0]}
    options = {
        "checkpoint": [arguments.checkpoint] if arguments.checkpoint else [],
        **changed,
        "seed": [arguments.seed] if arguments.seed else [],
        "out": [stem],
    }
    result = measure_relaxation(
        load_bundle(arguments.checkpoint), **numbers, seed=arguments.seed
    )
    result = {"command": command_line("bench relaxation", options), **result}
    write_file(stem + ".json", json_bytes(result))
    text = relaxation_markdown(result, f"{Path(stem).name}.png")
    write_file(stem + ".md", text.encode())
    write_file(stem + ".png", relaxation_plot(result))
    print(text)
