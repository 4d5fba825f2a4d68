"""Parses the command line; each command lives in its own module."""

import argparse
import sys
from collections.abc import Sequence

from jaxspec import __version__
from jaxspec.errors import JaxspecError


class _Parser(argparse.ArgumentParser):
    """One line for a wrong argument, exit status 2."""

    def error(self, message):
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """All commands; imports nothing heavy."""
    from jaxspec.cli import bench, convert, evaluate, generate, info, train

    parser = _Parser(
        prog="jaxspec",
        description="Autoregressive pictures, faster and unchanged: speculative "
        "decoding in JAX.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    for module in (generate, info, convert, train, evaluate, bench):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; an expected error is one line on stderr and status 2."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except JaxspecError as error:
        print(f"jaxspec: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission
        place = f" '{error.filename}'" if error.filename else ""
        print(f"jaxspec: {error.strerror or error}{place}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxspec: interrupted", file=sys.stderr)
        return 130
    return 0
