"""Which ratios of timings count, in every table that shows one."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from jaxspec.bench.decode import decode_markdown
from jaxspec.bench.streaming import streaming_markdown
from jaxspec.bench.tables import comparison_markdown
from jaxspec.timing import (
    RATIO_NOTE,
    Timing,
    worst_mark,
    plot_value,
    ratio_fields,
    shown,
)

QUIET = [1.0, 1.05, 1.1, 1.0, 1.2]
PACKAGE = Path(__file__).parent.parent / "jaxspec"


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ([2.9, 3.0, 3.3], "2.86"),
        ([2.9, 3.0, 3.3, 3.1, 300.0], "2.95"),  # one run in five says nothing
        ([2.9, 267.0, 268.0], "unsteady"),  # most did: the median is no time of ours
        ([2.9, 3.0, 9.0, 3.1, 8.0, 2.9, 9.0], "unsteady"),
        ([3.0], "2.86 (1 run)"),
        ([3.0, 3.1], "2.90 (2 runs)"),
        ([3.0, 300.0], "unsteady"),
    ],
    ids=str,
)
def test_a_ratio_counts_where_both_sides_were_repeated_and_alike(over, words):
    ratio = ratio_fields(speedup=(Timing.of(over), Timing.of(QUIET)))
    assert ratio["speedup"] == pytest.approx(np.median(over) / 1.05)
    assert shown(ratio, "speedup") == words
    upside_down = ratio_fields(speedup=(Timing.of(QUIET), Timing.of(over)))
    assert ("unsteady" in shown(upside_down, "speedup")) == (words == "unsteady")
    assert np.isnan(plot_value(ratio, "speedup")) == (words == "unsteady")


def test_a_number_made_of_ratios_has_the_gravest_of_their_marks():
    row = {"b_marked": "1 run", "c_marked": "unsteady"}
    assert worst_mark("x", row, "a") == {}
    assert worst_mark("x", row, "a", "b") == {"x_marked": "1 run"}
    assert worst_mark("x", row, "b", "c") == {"x_marked": "unsteady"}


def test_ratios_are_shown_as_percentages_and_factors():
    row = ratio_fields(share=(Timing.exact(0.5), Timing.of(QUIET)))
    assert shown(row, "share", "%") == "48 %" and shown(row, "share", "x") == "0.48x"


def test_timings_come_back_from_reports_old_and_new():
    timing = Timing.of(QUIET)
    assert Timing.from_report(timing.fields(), runs=1) == timing
    old = {"seconds": 2.0, "min_seconds": 1.9, "max_seconds": 2.1}
    assert Timing.from_report(old, runs=5) == Timing(2.0, 1.9, 2.1, 1.9, 2.1, 5)


MACHINE = {"device": "cpu", "versions": {"jax": "0"}, "command": "jaxspec bench"}


def report(own, peer, repeats=5):
    def row(method, times):
        timing = Timing.of(times)
        bound = ratio_fields(achieved=(Timing.exact(0.5), timing))
        same = {"model": "m", "batch": 1, "method": method, "tokens": 4}
        return {**same, **timing.fields(), **bound, "bound_seconds": 0.5}

    ceilings = {"bytes_per_second": 1e9, "flops_per_second": 1e12}
    rows = [row("jaxspec", own), row("torch", peer)]
    heads = {"dtype": "float32", "repeats": repeats, "baselines": "", "ceilings": ceilings}
    return {**MACHINE, **heads, "rows": rows}


def test_a_peer_that_waits_for_the_machine_gets_no_ratio():
    quiet = report(QUIET, [2.9, 3.0, 3.1, 3.0, 2.9])
    loaded = report(QUIET, [2.9, 260.0, 268.0, 3.0, 270.0])
    keys = ("model", "batch", "method", "tokens")
    for table, columns in ((decode_markdown, 2), (streaming, 1)):
        good, bad = table(quiet), table(loaded)
        assert RATIO_NOTE in good and good.count("unsteady") == RATIO_NOTE.count("unsteady")
        last = bad.strip().splitlines()[-1]
        assert last.count("unsteady") == columns
    assert comparison_markdown(quiet, quiet, keys).count("1.00 |") == 2
    assert "| torch | 4 | unsteady |" in comparison_markdown(loaded, quiet, keys)


def streaming(result):
    """The same rows as `bench stream` lists them."""
    base = Timing.from_report(result["rows"][0], 5)
    rows = []
    for row in result["rows"]:
        ratio = ratio_fields(speedup=(base, Timing.from_report(row, 5)))
        place = {"lengths": "all alike", "rounds": 1, "slot_utilization": 1.0}
        rows.append({**row, **place, **ratio})
    heads = {"checkpoint": "m", "num": 1, "rows_side_by_side": 1, "nodes": 1}
    return streaming_markdown({**result, **heads, "rows": rows})


FILES = [*PACKAGE.glob("bench/**/*.py"), PACKAGE / "report.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_times_are_divided_by_one_function(file):
    """A quotient of two times elsewhere would be shown without the rule."""
    time = re.compile(r"seconds|median|bound\b|timing")
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            sides = ast.unparse(node.left), ast.unparse(node.right)
            assert not all(map(time.search, sides)), ast.unparse(node)
