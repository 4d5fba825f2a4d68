"""`docs/traps.md` names tests and modules that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "traps.md").read_text()
TRAPS = 64


def sections(text):
    """Title and body of each trap, in order."""
    parts = re.split(r"^## (\d+\. .+)$", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def references(text):
    """All paths of tests and modules in backquotes."""
    return re.findall(r"`((?:tests|jaxspec)/[^`]*)`", " ".join(text.split()))


def problem(root, reference):
    """Description of what is wrong with a reference, or None."""
    path, *names = reference.split("::")
    file = root / path
    if not re.fullmatch(r"\w+(/\w+)*\.py", path) or len(names) > 1:
        return f"{reference}: not of the form path/file.py or path/file.py::name"
    if not file.is_file():
        return f"{reference}: there is no file {path}"
    if not names:
        return None
    if path.startswith("tests/") and not names[0].startswith("test_"):
        return f"{reference}: {names[0]} is no test"
    tree = ast.parse(file.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {x.name for x in tree.body if isinstance(x, kinds)}
    if names[0] not in defined:
        return f"{reference}: {path} defines no {names[0]}"
    return None


def test_all_references_exist():
    named = references(TEXT)
    assert len([x for x in named if "::" in x]) > TRAPS
    problems = [problem(ROOT, x) for x in named]
    assert [x for x in problems if x] == []


def test_all_tests_are_named_with_their_files():
    """The name of a test without its file would not be checked."""
    bare = re.findall(r"`(test_\w+)`", TEXT)
    assert bare == []


def test_every_trap_has_an_answer():
    traps = sections(TEXT)
    numbers = [int(title.split(".")[0]) for title, _ in traps]
    assert numbers == list(range(1, TRAPS + 1))
    for title, body in traps:
        answers = re.findall(r"\*\*(Tests|By construction|Not here)\.\*\*", body)
        assert answers, title
        assert "**Trap.**" in body, title
        for kind, text in zip(
            answers,
            re.split(r"\*\*(?:Tests|By construction|Not here)\.\*\*", body)[1:],
            strict=True,
        ):
            named = [x.split("/")[0] for x in references(text)]
            if kind == "Tests":
                assert "tests" in named, f"{title}: no test is named"
            if kind == "By construction":
                assert "jaxspec" in named, f"{title}: no module is named"


def test_all_tests_written_for_the_page_are_named_on_it():
    named = set(references(TEXT))
    files = sorted((ROOT / "tests" / "traps").glob("test_*.py"))
    assert files
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        tests = [getattr(x, "name", "") for x in ast.parse(file.read_text()).body]
        missing = [x for x in tests if x[:5] == "test_" and f"{path}::{x}" not in named]
        assert missing == [], path


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("tests/test_it.py::test_old_name", "defines no test_old_name"),
        ("tests/test_it.py::test_inner", "defines no test_inner"),
        ("tests/test_it.py::helper", "helper is no test"),
        ("tests/test_gone.py::test_new_name", "there is no file tests/test_gone.py"),
        ("tests/test_gone.py", "there is no file"),
        ("jaxspec/gone.py", "there is no file jaxspec/gone.py"),
        ("tests/test_it.py::test_new_name[3]", "defines no"),
        ("tests/test_it.py:test_new_name", "not of the form"),
        ("tests/", "not of the form"),
    ],
)
def test_a_renamed_test_or_module_is_detected(tmp_path, reference, words):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "def test_new_name():\n    def test_inner(): pass\n\ndef helper(): pass\n"
    )
    assert problem(tmp_path, "tests/test_it.py::test_new_name") is None
    assert problem(tmp_path, "tests/test_it.py") is None
    assert references(f"a `{reference}` b") == [reference]
    assert words in problem(tmp_path, reference)
