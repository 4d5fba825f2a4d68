"""README: every program runs, every command parses, every number is in its report."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.commands import check_command, commands_in
from tests.markdown import blocks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def prose(text):
    """Words outside of code, tables, images and links' targets."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    return re.sub(r"\]\([^)]*\)", "]", "\n".join(lines)).split()


def table_rows(text):
    """Cells of each row of the table of numbers that links a report."""
    for line in text.splitlines():
        if line.startswith("|") and (found := re.search(r"docs/reports/\w+\.md", line)):
            yield found[0], [cell.strip() for cell in line.strip("|").split("|")]


def test_examples_run_and_agree(capsys, tmp_path, monkeypatch):
    """Pipeline, `jit` and loop yield the same tokens."""
    monkeypatch.chdir(tmp_path)
    pipeline, jitted, loop = blocks("python", README)
    assert "naive_extend_57" in jitted
    jitted = jitted.replace("naive_extend_57", "chain-2")  # quick on a CPU
    names = {}
    exec(compile(pipeline, "README.md", "exec"), names)
    assert (tmp_path / "image.png").is_file()
    exec(compile(jitted, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("(3, 256) [")
    first = names["result"]
    np.testing.assert_array_equal(first.tokens, names["out"].tokens)
    exec(compile(loop, "README.md", "exec"), names)
    np.testing.assert_array_equal(first.tokens, names["result"].tokens)
    assert names["result"] is not first


@pytest.mark.parametrize("command", commands_in(README))
def test_commands_parse(command):
    check_command(command)


def test_files_it_points_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_our_numbers_are_on_one_line_of_the_linked_report():
    rows = list(table_rows(README.split("## Numbers")[1].split("## Install")[0]))
    assert len(rows) > 5
    for report, cells in rows:
        numbers = set(filter(None, cells[3:]))
        lines = (ROOT / report).read_text().splitlines()
        assert any(numbers <= set(re.findall(r"[\d.]+", line)) for line in lines), cells


def test_prose_is_at_most_700_words():
    assert len(prose(README)) <= 700


def test_it_installs_no_other_package():
    assert "pip install jaxspec" not in README
