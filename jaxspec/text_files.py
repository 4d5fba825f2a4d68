"""Text as it is read: UTF-8 whatever the locale is, lines ended by LF or CR LF."""

import os
import re
import sys
from pathlib import Path

from jaxspec.errors import DataError

# Whitespace, and the byte order marks that editors put before the first line: where
# files were laid end to end, they stand before later ones too.
_EDGES = re.compile(r"^[\s\ufeff]+|[\s\ufeff]+$")


def read_text(path: str | os.PathLike) -> str:
    """The text of a file, or of stdin for "-", without a leading byte order mark.

    Raises:
      DataError: it cannot be read, or is no UTF-8 text.
    """
    try:
        stdin = os.fspath(path) == "-"
        data = sys.stdin.buffer.read() if stdin else Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"'{path}' is no UTF-8 text: line {line} holds the byte "
            f"0x{data[error.start]:02x}; save it as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"'{path}' is no UTF-8 text: line {line} holds a zero byte; save it as "
            "UTF-8"
        )
    return text


def split_lines(text: str) -> list[str]:
    r"""Lines without their ends, `\n` or `\r\n`.

    `str.splitlines` also cuts at form feeds, U+0085, U+2028 and others, which may stand
    inside a caption.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | os.PathLike) -> dict[int, str]:
    """The lines that hold anything, by their number from 1, without outer whitespace.

    Raises:
      DataError: see `read_text`; or no line holds anything.
    """
    lines = enumerate(split_lines(read_text(path)), start=1)
    found = {i: text for i, line in lines if (text := _EDGES.sub("", line))}
    if not found:
        raise DataError(f"'{path}' holds no line to draw")
    return found
