"""`jaxspec bench text`: greedy text beside `transformers`."""

import argparse

from jaxspec.cli.bench.output import (
    add_compare,
    add_numbers,
    add_out,
    option_values,
    check_numbers,
    check_out,
    command_line,
    read_report,
    write_report,
)

SUFFIXES = (".json", ".md")
NUMBERS = {
    "layers": (12, "of the target; its drafters have a quarter of them"),
    "width": (512, "of the target"),
    "heads": (8, "of the target"),
    "vocab": (4096, "size of the vocabulary"),
    "tokens": (128, "to generate"),
    "repeats": (5, "timed runs of each"),
}


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "text",
        help="greedy text beside transformers: plain, assisted, DFlash",
        description="Generates the same greedy text with transformers and with our "
        "loop, from one set of random weights in Qwen3's form: plainly, with the "
        "target's first layers as a small model, and with a random block drafter. "
        "Needs torch and transformers.",
        epilog="Example: jaxspec bench text --layers 12 --width 512 --out text",
    )
    add_numbers(parser, **NUMBERS)
    add_compare(parser)
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command.

    Raises:
      ConfigError: a number makes no sense, or a package is not installed.
    """
    from importlib.util import find_spec

    from jaxspec.errors import ConfigError

    check_numbers(arguments, *NUMBERS)
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"this measurement needs {' and '.join(missing)}: "
            "pip install 'jaxspec-decoding[parity]'"
        )
    check_out(arguments.out, *SUFFIXES)
    before = read_report(arguments.compare)

    from jaxspec.bench.peers.transformers_text import KEYS, bench_text, text_markdown

    result = bench_text(**{name: getattr(arguments, name) for name in NUMBERS})
    write_report(
        arguments.out,
        command_line("bench text", option_values(arguments, *NUMBERS, "out")),
        result,
        text_markdown,
        compare=(before, KEYS),
    )
