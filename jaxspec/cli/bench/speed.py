"""Options that measurements of speed share."""

import argparse
from typing import Any

from jaxspec.cli.bench.output import (
    add_compare,
    add_numbers,
    add_out,
    option_values,
    check_numbers,
)
from jaxspec.cli.options import add_checkpoint

SUFFIXES = (".json", ".md", ".png")
MODELS = ["default"]


def add_speed(
    parser: argparse.ArgumentParser, *, variants: bool = True, repeats: int = 5
) -> None:
    """Models, dtype, repeats, variants, comparison and output."""
    add_checkpoint(parser)
    add_models(parser, variants=variants)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and caches (default: bfloat16, on a CPU float32)",
    )
    add_numbers(
        parser,
        grid=(24, "tokens along a side, of published sizes"),
        repeats=(repeats, "timed runs of each"),
    )
    if variants:
        parser.add_argument(
            "--compiler-options",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="of XLA, such as xla_gpu_enable_command_buffer=FUSION,CUBLAS,WHILE",
        )
    add_compare(parser)
    add_out(parser, *SUFFIXES)


def add_models(parser: argparse.ArgumentParser, *, variants: bool = True) -> None:
    """Models, and methods of running them."""
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="NAME",
        help="default (--checkpoint), or published sizes with random weights: gpt-b, "
        "gpt-l, gpt-xl, ... (default: default)",
    )
    if variants:
        parser.add_argument(
            "--variants",
            nargs="+",
            default=["xla"],
            metavar="WAY",
            help="of our program: xla, pallas, cudnn (attention over the cache), int8, "
            "stagesN (a cache that grows), joined by + (default: xla)",
        )


def speed_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the measurements take, checked.

    Raises:
      ConfigError: an option makes no sense.
    """
    check_numbers(arguments, "repeats", grid=3)
    from jaxspec.device import default_dtype

    found = {
        "grid": arguments.grid,
        "dtype": arguments.dtype or default_dtype(),
        "repeats": arguments.repeats,
        "checkpoint": arguments.checkpoint,
    }
    if hasattr(arguments, "compiler_options"):
        found["options"] = compiler_options(arguments.compiler_options)
    return found


def compiler_options(words: list[str]) -> dict[str, str]:
    """`KEY=VALUE` words as a dict.

    Raises:
      ConfigError: a word is none.
    """
    from jaxspec.errors import ConfigError

    for word in words:
        if "=" not in word.strip("="):
            raise ConfigError(f"--compiler-options {word!r} is no KEY=VALUE")
    return dict(word.split("=", 1) for word in words)


def shown(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options as they were given, for a report's head."""
    common = ("checkpoint", "models", "dtype", "grid", "repeats", "variants")
    common = [n for n in (*common, "compiler-options") if _has(arguments, n)]
    return option_values(arguments, *common, *names, "out")


def _has(arguments: argparse.Namespace, name: str) -> bool:
    return hasattr(arguments, name.replace("-", "_"))
