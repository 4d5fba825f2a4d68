"""Parses the command line; each command lives in its own module."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxspec import __version__
from jaxspec.cli.failures import sentence
from jaxspec.cli.interrupts import INTERRUPTED, end_in_time
from jaxspec.cli.streams import complain, flush_stdout, open_missing


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
        description="Autoregressive images, faster and unchanged: speculative "
        "decoding in JAX.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    for module in (generate, info, convert, train, evaluate, bench):
        module.add_parser(commands)
    return parser


def command() -> NoReturn:
    """The program: `main`, and the end of the process.

    After an interrupt it ends at once. Libraries' threads, which are in the middle of
    something, would otherwise be waited for, or crash while Python is taken apart.
    """
    open_missing()  # before anything else opens a file
    end_in_time()
    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; an expected error is one line on stderr and status 2.

    Letters that the terminal cannot show are printed as escapes, as on stderr.
    """
    open_missing()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = argparse.Namespace()
    try:
        try:
            arguments = build_parser().parse_args(argv)
            arguments.run(arguments)
        finally:
            flush_stdout()
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        text = sentence(error, arguments)
        if text is None:
            raise
        complain(text)
        return 2
    return 0
