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


def report_rows(name):
    """Rows of the table of a report of engines, by batch size and engine."""
    lines = (ROOT / name).read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if re.match(r"\| \d", line)]
    return [[cell.strip() for cell in row] for row in rows]


def test_engines_are_those_of_their_reports():
    """Each cell has the figures of batch 1, 4 and 8, or one that all have."""
    text = README.split("Engines compared")[1].split("## Install")[0]
    first, second = re.findall(r"docs/reports/engines\w*\.md", text)
    shown = [line.strip("|").split("|") for line in text.splitlines() if "|" in line][
        2:
    ]
    found = report_rows(first)
    assert len(shown) == 4 and len(found) == 12
    for i, cells in enumerate(shown):
        own = found[i::4]  # the engine at each batch size
        calls, milliseconds, seconds, spread, speeds = map(str.strip, cells[1:])
        for cell, column in ((calls, 4), (milliseconds, 5), (seconds, 6), (speeds, 8)):
            values = [float(x) for x in cell.split("/")]
            values = values if len(values) > 1 else values * 3
            assert values == [float(row[column]) for row in own], cells
        assert spread == own[0][7]
    trained = re.search(r"`fruits64`[^:]*: ([^(]*)\(", text)
    numbers = [float(x) for x in re.findall(r"\d\.\d+", trained[1])]
    rows = report_rows(second)
    names = "same drafter and tree", "PyTorch, loop"
    expected = [float(row[8]) for name in names for row in rows if name in row[1]]
    assert numbers == expected


def test_prose_is_at_most_700_words():
    assert len(prose(README)) <= 700


def test_it_installs_no_other_package():
    assert "pip install jaxspec" not in README
