"""Standard streams that are closed, or whose reader has exited."""

import contextlib
import os
import sys

from jaxspec.errors import DataError


def open_closed_streams() -> None:
    """Opens the null device for standard streams that were closed at start (`2>&-`).

    Otherwise the next file that is opened gets the descriptor of, for example, stderr,
    and libraries write their messages into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def flush_stdout() -> None:
    """Flushes stdout.

    Raises:
      DataError: the reader of the pipe has exited, or the disk is full.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "wb") as null:  # Python would fail again at exit
            os.dup2(null.fileno(), sys.stdout.fileno())
        raise DataError(f"cannot write to stdout: {error.strerror}") from None


def print_error(text: str) -> None:
    """Prints one line on stderr; a closed stderr is ignored."""
    with contextlib.suppress(OSError):
        print(f"jaxspec: {text}", file=sys.stderr, flush=True)
