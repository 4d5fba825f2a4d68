"""Text input: UTF-8 in every locale, with lines that end at LF or CR LF."""

import os
import re
import sys
from pathlib import Path

from jaxspec.errors import DataError

# Whitespace and byte order marks. Editors write a mark before the first line, and
# concatenated files have them before later lines as well.
_EDGES = re.compile(r"^[\s\ufeff]+|[\s\ufeff]+$")


def read_text(path: str | os.PathLike) -> str:
    """Reads a file, or stdin for "-", without a leading byte order mark.

    Raises:
      DataError: the file cannot be read, or is not UTF-8 text.
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
            f"'{path}' is not UTF-8 text: line {line} holds the byte "
            f"0x{data[error.start]:02x}; save it as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"'{path}' is not UTF-8 text: line {line} holds a zero byte; save it as "
            "UTF-8"
        )
    return text


def split_lines(text: str) -> list[str]:
    r"""Splits text at `\n` and `\r\n` only.

    `str.splitlines` also splits at form feeds, U+0085, U+2028 and others, which may
    occur inside a caption.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | os.PathLike) -> dict[int, str]:
    """Reads the non-empty lines of a file, stripped, by line number from 1.

    Raises:
      DataError: the file cannot be read, is not UTF-8 text, or has only empty lines.
    """
    lines = enumerate(split_lines(read_text(path)), start=1)
    texts = {i: text for i, line in lines if (text := _EDGES.sub("", line))}
    if not texts:
        raise DataError(f"'{path}' has only empty lines; write one prompt per line")
    return texts
