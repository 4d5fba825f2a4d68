"""Ratios of timings: marks of unreliable ones, in every table that shows ratios."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from jaxspec.bench.decode import decode_markdown
from jaxspec.bench.streaming import streaming_markdown
from jaxspec.evaluate.tables import comparison_markdown
from jaxspec.pipeline.timing import (
    RATIO_NOTE,
    Timing,
    plot_value,
    ratio_fields,
    shown,
    worst_mark,
)

QUIET = [1.0, 1.05, 1.1, 1.0, 1.2]
PACKAGE = Path(__file__).parent.parent.parent / "jaxspec"


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ([2.9, 3.0, 3.3], "2.86"),
        ([2.9, 3.0, 3.3, 3.1, 300.0], "2.95"),  # one outlier in five runs is ignored
        ([2.9, 267.0, 268.0], "unsteady"),  # most runs are slow: so is the median
        ([2.9, 3.0, 9.0, 3.1, 8.0, 2.9, 9.0], "unsteady"),
        ([3.0], "2.86 (1 run)"),
        ([3.0, 3.1], "2.90 (2 runs)"),
        ([3.0, 300.0], "unsteady"),
    ],
    ids=str,
)
def test_ratio_is_marked_where_runs_are_few_or_vary(over, text):
    ratio = ratio_fields(speedup=(Timing.of(over), Timing.of(QUIET)))
    assert ratio["speedup"] == pytest.approx(np.median(over) / 1.05)
    assert shown(ratio, "speedup") == text
    inverse = ratio_fields(speedup=(Timing.of(QUIET), Timing.of(over)))
    assert ("unsteady" in shown(inverse, "speedup")) == (text == "unsteady")
    assert np.isnan(plot_value(ratio, "speedup")) == (text == "unsteady")


def test_derived_number_has_the_worst_mark_of_its_ratios():
    row = {"b_marked": "1 run", "c_marked": "unsteady"}
    assert worst_mark("x", row, "a") == {}
    assert worst_mark("x", row, "a", "b") == {"x_marked": "1 run"}
    assert worst_mark("x", row, "b", "c") == {"x_marked": "unsteady"}


def test_ratios_are_shown_as_percentages_and_factors():
    row = ratio_fields(share=(Timing.exact(0.5), Timing.of(QUIET)))
    assert shown(row, "share", "%") == "48 %" and shown(row, "share", "x") == "0.48x"


def test_timings_are_read_from_reports_with_and_without_quartiles():
    timing = Timing.of(QUIET)
    assert Timing.from_report(timing.fields(), runs=1) == timing
    short = {"seconds": 2.0, "min_seconds": 1.9, "max_seconds": 2.1}
    assert Timing.from_report(short, runs=5) == Timing(2.0, 1.9, 2.1, 1.9, 2.1, 5)


MACHINE = {"device": "cpu", "versions": {"jax": "0"}, "command": "jaxspec bench"}


def report(jaxspec, baseline, repeats=5):
    def row(method, times):
        timing = Timing.of(times)
        bound = ratio_fields(achieved=(Timing.exact(0.5), timing))
        cell = {"model": "m", "batch": 1, "method": method, "tokens": 4}
        return {**cell, **timing.fields(), **bound, "bound_seconds": 0.5}

    ceilings = {"bytes_per_second": 1e9, "flops_per_second": 1e12}
    rows = [row("jaxspec", jaxspec), row("torch", baseline)]
    heads = {
        "dtype": "float32",
        "repeats": repeats,
        "baselines": "",
        "ceilings": ceilings,
    }
    return {**MACHINE, **heads, "rows": rows}


def test_unsteady_baseline_gets_no_ratio():
    quiet = report(QUIET, [2.9, 3.0, 3.1, 3.0, 2.9])
    loaded = report(QUIET, [2.9, 260.0, 268.0, 3.0, 270.0])
    keys = ("model", "batch", "method", "tokens")
    for table, columns in ((decode_markdown, 2), (streaming, 1)):
        good, bad = table(quiet), table(loaded)
        assert RATIO_NOTE in good and good.count("unsteady") == RATIO_NOTE.count(
            "unsteady"
        )
        last = bad.strip().splitlines()[-1]
        assert last.count("unsteady") == columns
    assert comparison_markdown(quiet, quiet, keys).count("1.00 |") == 2
    assert "| torch | 4 | unsteady |" in comparison_markdown(loaded, quiet, keys)


def streaming(result):
    """Formats the rows as a report of `bench stream`."""
    base = Timing.from_report(result["rows"][0], 5)
    rows = []
    for row in result["rows"]:
        ratio = ratio_fields(speedup=(base, Timing.from_report(row, 5)))
        fields = {"lengths": "equal", "rounds": 1, "slot_utilization": 1.0}
        rows.append({**row, **fields, **ratio})
    heads = {"checkpoint": "m", "num": 1, "batch": 1, "nodes": 1}
    return streaming_markdown({**result, **heads, "rows": rows})


STUDIES = PACKAGE.parent / "docs" / "studies"
FILES = [*PACKAGE.glob("bench/**/*.py"), PACKAGE / "pipeline/report.py"]
FILES += STUDIES.rglob("*.py")


@pytest.mark.parametrize(
    "file", FILES, ids=lambda f: f.relative_to(PACKAGE.parent).as_posix()
)
def test_times_are_divided_by_one_function(file):
    """Quotients of times outside of `ratio_fields` would be shown without a mark."""
    time = re.compile(r"seconds|median|bound\b|timing")
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            sides = ast.unparse(node.left), ast.unparse(node.right)
            assert not all(map(time.search, sides)), ast.unparse(node)
