"""Standard streams that are closed, or whose reader has gone."""

import contextlib
import os
import sys

from jaxspec.errors import DataError


def open_missing() -> None:
    """Opens streams that were closed at the start (`2>&-`) to nowhere.

    The next files would otherwise get their numbers, and what libraries write to
    stderr with them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def flush_stdout() -> None:
    """Writes what was printed.

    Raises:
      DataError: nobody reads it any more, or its disk is full.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:  # or Python complains at its end
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise DataError(f"cannot write to stdout: {error.strerror}") from None


def complain(text: str) -> None:
    """One line on stderr, if anybody reads it."""
    with contextlib.suppress(OSError):
        print(f"jaxspec: {text}", file=sys.stderr, flush=True)
