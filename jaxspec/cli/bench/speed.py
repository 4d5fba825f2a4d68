"""Options shared by speed benchmarks."""

import argparse
from typing import Any

from jaxspec.cli.options import add_checkpoint
from jaxspec.cli.reports import (
    add_compare,
    add_numbers,
    add_out,
    check_numbers,
    option_values,
)

SUFFIXES = (".json", ".md", ".png")
MODELS = ["default"]


def add_speed(
    parser: argparse.ArgumentParser, *, variants: bool = True, repeats: int = 5
) -> None:
    """Adds options of models, dtype, repeats, variants, comparison and output."""
    add_checkpoint(parser)
    add_models(parser, variants=variants)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of weights and caches (default: bfloat16, on CPUs float32)",
    )
    add_numbers(
        parser,
        grid=(24, "tokens along a side, for published sizes"),
        repeats=(repeats, "number of timed runs of each program"),
    )
    if variants:
        parser.add_argument(
            "--compiler-options",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="options of XLA, such as "
            "xla_gpu_enable_command_buffer=FUSION,CUBLAS,WHILE",
        )
    add_compare(parser)
    add_out(parser, *SUFFIXES)


def add_models(parser: argparse.ArgumentParser, *, variants: bool = True) -> None:
    """Adds `--models` and `--variants`."""
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="NAME",
        help="models: default (--checkpoint), or published sizes with random weights: "
        "gpt-b, gpt-l, gpt-xl, ... (default: default)",
    )
    if variants:
        parser.add_argument(
            "--variants",
            nargs="+",
            default=["xla"],
            metavar="VARIANT",
            help="variants of the decoder: xla, pallas, cudnn (attention over the "
            "cache), int8, stagesN (a cache that grows), joined by + (default: xla)",
        )


def speed_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Checks shared options; returns them as keyword arguments of a benchmark.

    Raises:
      ConfigError: An option is out of range.
    """
    check_numbers(arguments, "repeats", grid=3)
    from jaxspec.sharding.device import default_dtype

    keywords = {
        "grid": arguments.grid,
        "dtype": arguments.dtype or default_dtype(),
        "repeats": arguments.repeats,
        "checkpoint": arguments.checkpoint,
    }
    if hasattr(arguments, "compiler_options"):
        keywords["options"] = compiler_options(arguments.compiler_options)
    return keywords


def compiler_options(pairs: list[str]) -> dict[str, str]:
    """Parses `KEY=VALUE` pairs.

    Raises:
      ConfigError: A pair has another form.
    """
    from jaxspec.errors import ConfigError

    for pair in pairs:
        if "=" not in pair.strip("="):
            raise ConfigError(f"--compiler-options {pair!r} must be KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def speed_option_values(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Values of shared and further options, in the format of `command_line`."""
    common = ("checkpoint", "models", "dtype", "grid", "repeats", "variants")
    common = [x for x in (*common, "compiler-options") if _has(arguments, x)]
    return option_values(arguments, *common, *names, "out")


def _has(arguments: argparse.Namespace, name: str) -> bool:
    return hasattr(arguments, name.replace("-", "_"))
