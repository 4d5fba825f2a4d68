"""Entry point of the command line; each command has a module of its own."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jaxspec import __version__
from jaxspec.cli.compile_cache import use_compile_cache
from jaxspec.cli.failures import error_message
from jaxspec.cli.help import Parser
from jaxspec.cli.interrupts import INTERRUPTED, exit_on_interrupt
from jaxspec.cli.streams import flush_stdout, open_closed_streams, print_error


def build_parser() -> argparse.ArgumentParser:
    """Parser with all commands; imports neither JAX nor models."""
    from jaxspec.cli import (
        bench,
        convert,
        demo,
        detect,
        evaluate,
        generate,
        info,
        train,
    )

    parser = Parser(
        prog="jaxspec",
        description="Autoregressive images, faster and unchanged: speculative "
        "decoding in JAX.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    for module in (generate, demo, info, detect, convert, train, evaluate, bench):
        module.add_parser(commands)
    return parser


def command() -> NoReturn:
    """Runs `main` and exits the process with its status.

    After an interrupt the process exits without waiting for threads of libraries, which
    could block the exit, or crash while the interpreter shuts down.
    """
    open_closed_streams()  # before anything else opens a file
    exit_on_interrupt()
    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def main(
    argv: Sequence[str] | None = None,
    make_parser: Callable[[], argparse.ArgumentParser] | None = None,
) -> int:
    """Runs one command and returns its exit status.

    An expected error is printed as one line on stderr, with status 2. Characters that
    the terminal cannot encode are printed as escapes, as Python does on stderr.

    Args:
      argv: Words of the command line; None for those of the process.
      make_parser: Function that makes the parser; None for `build_parser`. Arguments
        hold `run`, a function that takes them.
    """
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = argparse.Namespace()
    try:
        try:
            arguments = (make_parser or build_parser)().parse_args(argv)
            use_compile_cache(arguments)
            arguments.run(arguments)
        finally:
            flush_stdout()
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except Exception as error:
        message = error_message(error, arguments)
        if message is None:
            raise
        print_error(message)
        return 2
    return 0
