"""Text files: UTF-8 in every locale, and lines that end at LF or CR LF only."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxspec.cli import main
from jaxspec.errors import DataError
from jaxspec.io.text_files import read_lines, read_text, split_lines

PACKAGE = Path(__file__).parent.parent.parent / "jaxspec"
CAPTIONS = ["ein Bär im Schnee", "北京の朝", "an 🍎", "naïve, with form\ffeed"]
# Characters at which `str.splitlines` would also split.
NOT_LINE_ENDS = [
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
    "\r",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=repr)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
def test_captions_are_read_unchanged(tmp_path, end, mark):
    lines = CAPTIONS + [f"one{letter}line" for letter in NOT_LINE_ENDS]
    file = tmp_path / "prompts.txt"
    text = mark + end.join([*lines[:2], "  ", "", *lines[2:]])
    file.write_bytes(text.encode())
    captions = read_lines(file)
    assert list(captions.values()) == lines
    assert list(captions)[:3] == [1, 2, 5]  # empty lines count
    assert split_lines(text) == text.split(end)
    assert split_lines(text + end) == text.split(end)


def test_byte_order_marks_of_concatenated_files_are_removed(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\n\ufeffa dog\r\n".encode())
    assert list(read_lines(file).values()) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"fine\nna\xefve\n", "line 2 holds the byte 0xef; save it as UTF-8"),
        ("a cat".encode("utf-16"), "line 1 holds the byte 0xff; save it as UTF-8"),
        ("a cat".encode("utf-16-le"), "line 1 holds a zero byte; save it as UTF-8"),
        (b"", "has only empty lines"),
        ("\ufeff \n\u2028\n".encode(), "has only empty lines"),
    ],
    ids=repr,
)
def test_files_that_are_not_text_raise_a_clear_error(tmp_path, data, words):
    file = tmp_path / "prompts.txt"
    file.write_bytes(data)
    with pytest.raises(DataError, match=words) as error:
        read_lines(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_raises_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="cannot read .*: No such file"):
        read_text(tmp_path / "gone")


def test_the_locale_changes_nothing(tmp_path):
    """A process reads UTF-8 from a file and from stdin in the locale C."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(CAPTIONS), encoding="utf-8")
    code = (
        "import sys; from jaxspec.io.text_files import read_lines;"
        "print(ascii([list(read_lines(name).values()) for name in sys.argv[1:]]))"
    )
    out = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, str(file), "-"],
        input=file.read_bytes(),
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        check=True,
    )
    assert ast.literal_eval(out.stdout.decode()) == [CAPTIONS, CAPTIONS]


def test_characters_that_a_terminal_cannot_encode_are_escaped(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)

    def run(arguments):
        print("Bär")

    class Parser:
        def parse_args(self, argv):
            return type("Arguments", (), {"run": staticmethod(run)})

    monkeypatch.setattr(sys.modules["jaxspec.cli.main"], "build_parser", Parser)
    assert main([]) == 0
    narrow.flush()
    assert narrow.buffer.getvalue() == b"B\\xe4r\n"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_every_text_file_has_an_explicit_encoding(file):
    """Text is read by `io.text_files.read_text`, and written with an encoding."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        keywords = {key.arg: ast.unparse(key.value) for key in node.keywords}
        where = f"line {node.lineno}: {ast.unparse(node)[:60]}"
        if name == "read_text":
            assert isinstance(function, ast.Name), where
        owner = isinstance(function, ast.Attribute) and ast.unparse(function.value)
        assert not (name.startswith("read") and owner == "sys.stdin"), where
        # `os.open` returns a descriptor, which has no encoding.
        opens = name == "fdopen" or (name == "open" and isinstance(function, ast.Name))
        binary = len(node.args) > 1 and "b" in ast.unparse(node.args[1])
        if name == "write_text" or (opens and not binary):
            assert keywords.get("encoding") == "'utf-8'", where
