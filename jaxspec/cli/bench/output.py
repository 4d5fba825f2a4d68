"""Files of one measurement that share a stem, and the command that they show."""

import argparse
from collections.abc import Mapping, Sequence


def add_out(parser: argparse.ArgumentParser, *suffixes: str) -> None:
    """`--out`."""
    names = [f"STEM{suffix}" for suffix in suffixes]
    parser.add_argument(
        "--out",
        required=True,
        metavar="STEM",
        help=f"writes {', '.join(names[:-1])} and {names[-1]}",
    )


def check_out(stem: str, *suffixes: str) -> None:
    """Fails before the measurement where writing would fail after it.

    Raises:
      DataError: a file cannot be written.
    """
    from jaxspec.images import check_writable

    for suffix in suffixes:
        check_writable(stem + suffix)


def command_line(what: str, options: Mapping[str, Sequence]) -> str:
    """`jaxspec bench WHAT` with its options; those without values are left out."""
    words = [f"--{k} {' '.join(map(str, v))}" for k, v in options.items() if v]
    return " ".join(["jaxspec bench", what, *words])
