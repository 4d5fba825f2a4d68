"""`jaxspec bench relaxation`: acceptance and distortion of lossy verifiers."""

import argparse

from jaxspec.cli.options import add_checkpoint
from jaxspec.cli.reports import (
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
)

SUFFIXES = (".json", ".md", ".png")
NUMBERS = {
    "toys": (8, "number of positions of each synthetic setting"),
    "images": (16, "number of positions of the checkpoint, one in each image"),
    "drafts": (4096, "number of drafts of several children per position, a power of 2"),
    "samples": (1 << 19, "number of noise samples for several children"),
}


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "relaxation",
        help="acceptance and distortion of lossy verifiers",
        description="Computes how often CoupledRelaxed and LANTERN accept a drafted "
        "token, and the distance between the distribution of the emitted token and the "
        "target's, in two synthetic settings and for the checkpoint, with one and with "
        "three children. Takes minutes.",
        epilog="Example: jaxspec bench relaxation --out docs/reports/relaxation_cpu",
    )
    add_checkpoint(parser)
    add_numbers(parser, **NUMBERS, seed=(0, "seed of images, drafts and noise"))
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    from pathlib import Path

    from jaxspec.errors import ConfigError

    check_numbers(arguments, *NUMBERS, seed=0)
    numbers = {name: getattr(arguments, name) for name in NUMBERS}
    if arguments.drafts.bit_count() != 1:
        raise ConfigError(f"--drafts {arguments.drafts} must be a power of 2")
    stem = arguments.out
    check_out(stem, *SUFFIXES)

    from docs.studies.relaxation import (
        measure_relaxation,
        relaxation_markdown,
        relaxation_plot,
    )
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.report import json_bytes

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
