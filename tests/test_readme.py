"""The README does what it says."""

import re
from pathlib import Path

from tests.markdown import blocks

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_quickstart_is_two_commands():
    quickstart = README.split("## Quickstart")[1].split("\n## ")[0]
    commands = [block.strip().splitlines() for block in blocks("sh", quickstart)]
    assert len(commands) == 2 and all(len(lines) == 1 for lines in commands)
    generate, tests = (lines[0] for lines in commands)
    assert generate.endswith("jaxspec generate") and tests.endswith("-m pytest")
    assert "pip install jaxspec" not in README


def test_example_runs(capsys):
    (example,) = blocks("python", README)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(3, 256) [")


def test_files_it_points_to_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (root / target).exists(), target
