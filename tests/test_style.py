"""The measurable part of the style note in CONTRIBUTING.

`python -m tests.test_style jaxspec/convert docs` lists what is wrong in some folders.
"""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

THIS = Path(__file__)  # not checked: it lists the words
ROOT = THIS.parent.parent

# Openings of titles and summaries that are clauses, not names of a thing.
CLAUSES = ("What", "How", "Where", "Which", "Who", "Whose", "When", "Why")
# Openings of an argument's description that leave out the noun.
NOUNLESS = (
    "of", "as", "see", "all", "how", "which", "what", "where", "who", "so", "likewise",
    "that", "those", "from", "by", "to", "in", "at", "with", "for",
)  # fmt: skip
# Things do not speak, feel or promise; and words of our own for terms of the field.
BANNED = re.compile(
    r"\b(?:sa(?:y|ys|id|ying)|tells?|told|telling|speaks?|spoken|whoever|nobody|"
    r"somebody|anybody|everybody|pictures?|riders?|rides?|lessons?|forgives?|"
    r"stand-ins?|honest(?:ly)?|doubt(?:ed|ful|s)?|settle[sd]?|likewise|alike|"
    r"in turn|as ever|in peace|so many|so much)\b",
    re.IGNORECASE,
)
BRITISH = re.compile(
    r"\w*(?:neighbour|licence|colour|behaviour|favour|normalis|quantis|initialis|"
    r"optimis(?!ti)|recognis|utilis|generalis|marginalis|summaris|serialis|organis|centre)\w*",
    re.IGNORECASE,
)


def texts(file):
    """(line, text) of everything in a file that a person reads."""
    source = file.read_text("utf-8")
    if file.suffix == ".md":
        fence = False
        for number, line in enumerate(source.splitlines(), 1):
            fence ^= line.lstrip().startswith("```")
            if not fence:
                yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for i, line in enumerate(token.string.splitlines()):
                yield token.start[0] + i, line
        elif token.type == tokenize.NAME:
            yield token.start[0], token.string.replace("_", " ")


def banned_words(file):
    """Words that the style note replaces."""
    for number, text in texts(file):
        for pattern in (BANNED, BRITISH):
            for match in pattern.finditer(text):
                yield f"{file.relative_to(ROOT)}:{number}: {match[0]!r}"


def docstrings(file):
    """(line, docstring) of a module and of everything in it that has one."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def clauses_as_titles(file):
    """Summaries that open with a question word."""
    for number, text in docstrings(file):
        first = text.split(maxsplit=1)[0].rstrip(",:")
        if first in CLAUSES:
            yield f"{file.relative_to(ROOT)}:{number}: opens with {first!r}"


def arguments_without_nouns(file):
    """Descriptions of arguments and attributes that open with no noun."""
    for number, text in docstrings(file):
        for section in re.split(r"\n(?=\w+:\n)", text)[1:]:
            if section.split(":")[0] not in ("Args", "Attributes"):
                continue
            for name, first in re.findall(r"\n  (\w+): ([\w`\[]+)", section):
                if first.lower() in NOUNLESS:
                    yield (
                        f"{file.relative_to(ROOT)}:{number}: {name!r} is described "
                        f"from {first!r} on"
                    )


def violations(paths):
    """Everything that is wrong in some files and folders."""
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("*.*"))
        for file in files:
            if file.suffix not in (".py", ".md") or "reports" in file.parts:
                continue
            if file == THIS:
                continue
            yield from banned_words(file)
            if file.suffix == ".py":
                yield from clauses_as_titles(file)
                yield from arguments_without_nouns(file)


# Parts that follow the style note: all except the generated reports.
PARTS = [
    ROOT / part
    for part in (
        *sorted(f"jaxspec/{f.name}" for f in (ROOT / "jaxspec").glob("[a-z]*")),
        "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "configs", "docs/api",
        "docs/converting.md", "docs/design.md", "docs/drafters.md", "docs/examples",
        "docs/figures", "docs/get_started.md", "docs/index.md", "docs/own_drafter.md",
        "docs/own_loop.md", "docs/own_model.md",
        "docs/performance.md", "docs/scaling.md", "docs/studies", "docs/training.md",
        "docs/traps.md", "docs/verification.md", "tests",
    )
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_prose_follows_the_style_note(part):
    found = list(violations([part]))
    assert not found, "\n".join(found)


def test_the_checks_detect_violations(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "wrong.py"
    file.write_text(
        '"""What nobody said."""\n\n'
        "def f(colour):\n"
        '    """Takes it.\n\n    Args:\n      colour: of the picture.\n    """\n'
    )
    found = "\n".join(violations([file]))
    for part in ("opens with 'What'", "'nobody'", "'said'", "'colour'", "'picture'"):
        assert part in found
    assert "'colour' is described from 'of' on" in found


if __name__ == "__main__":
    print(*violations([ROOT / x for x in sys.argv[1:] or ("jaxspec",)]), sep="\n")
