"""`jaxspec bench text`: text generation compared with `transformers`."""

import argparse

from jaxspec.cli.reports import (
    add_compare,
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
    option_values,
    read_report,
    write_report,
)

SUFFIXES = (".json", ".md")
NUMBERS = {
    "layers": (12, "layers of the target; its drafters have a quarter of them"),
    "width": (512, "model width of the target"),
    "heads": (8, "heads of the target"),
    "vocab": (4096, "vocabulary size"),
    "tokens": (128, "number of generated tokens"),
    "repeats": (5, "number of timed runs of each method"),
}


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "text",
        help="text generation compared with transformers: plain, assisted, DFlash",
        description="Generates the same greedy text with transformers and with "
        "jaxspec, from one set of random weights in Qwen3's architecture: plainly, "
        "with the target's first layers as draft model, and with a random block "
        "drafter. Needs torch and transformers.",
        epilog="Example: jaxspec bench text --layers 12 --width 512 --out text",
    )
    add_numbers(parser, **NUMBERS)
    add_compare(parser)
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
      ConfigError: A number is out of range, or a package is not installed.
    """
    from importlib.util import find_spec

    from jaxspec.errors import ConfigError

    check_numbers(arguments, *NUMBERS)
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"this benchmark needs {' and '.join(missing)}: "
            "pip install 'jaxspec-decoding[parity]'"
        )
    check_out(arguments.out, *SUFFIXES)
    before = read_report(arguments.compare)

    from docs.studies.text import (
        KEYS,
        bench_text,
        text_markdown,
    )

    result = bench_text(**{name: getattr(arguments, name) for name in NUMBERS})
    write_report(
        arguments.out,
        command_line("bench text", option_values(arguments, *NUMBERS, "out")),
        result,
        text_markdown,
        compare=(before, KEYS),
    )
