"""Choice of a draft tree from acceptance and cost."""

import numpy as np
import pytest

from jaxspec.bench import plan
from jaxspec.cli import main
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.generation import GenerationResult
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.timing import Timing
from jaxspec.speculative.trees.tree import Tree


def test_acceptance_is_counted_by_depth_and_rank():
    tree = plan.spine(3, 2)
    assert tree == Tree.named("0,1,00,01,000,001")
    hits = np.array([[600, 200], [300, 60], [30, 3]])
    table = plan.rank_acceptance(hits, 1000)
    np.testing.assert_allclose(table, [[0.6, 0.2], [0.5, 0.1], [0.1, 0.01]])
    few = plan.rank_acceptance(hits // 10, 100)  # the third depth was reached 30 times
    np.testing.assert_allclose(few, [[0.6, 0.2]])


def test_expected_tokens_are_one_plus_the_probability_of_every_node():
    acceptance = [[0.5, 0.25], [0.4]]
    tree = Tree.named("0,1,00,10,000")
    expected = 1 + 0.5 + 0.25 + 0.5 * 0.4 + 0.25 * 0.4 + 0.5 * 0.4 * 0.4
    assert tree.expected_tokens(acceptance) == pytest.approx(expected)
    best = Tree.optimal(acceptance, 6, 3)
    assert best.expected_tokens(acceptance) >= expected


def plan_with_cost(monkeypatch, cost):
    """Plan for the embedded bundle with fixed measurements."""
    classes = (0,) * 16
    hits = np.tile([[60, 15], [50, 10]], (16, 1, 1))
    run = GenerationResult(
        tokens=np.zeros((16, 256), int),
        calls=np.full(16, 101),
        accepted=np.zeros((16, 3), int),
        hits=hits,
        proposed=np.zeros(16, int),
        rescored=0,
        timing=Timing.exact(1.0),
        compile_seconds=1.0,
    )
    monkeypatch.setattr(plan, "generate", lambda *_, **__: run)

    def timed(bundle, prompts, settings, tree, loaded, repeats):
        times = cost(tree.size)
        return Timing.of(times if isinstance(times, list) else [times] * 3)

    monkeypatch.setattr(plan, "round_timing", timed)
    return plan.plan_tree(
        load_bundle("fruits64"),
        Prompts.from_classes(classes),
        GenerationConfig(),
        nodes=(2, 4, 8),
    )


@pytest.mark.slow
def test_the_best_tree_weighs_tokens_against_cost(monkeypatch):
    free = plan_with_cost(monkeypatch, lambda nodes: 1.0)  # nodes are free
    assert free["best"]["nodes"] == 8
    assert free["acceptance"][0] == [0.6, 0.15]
    tree = Tree.named(free["best"]["paths"])
    assert tree.size == 8
    speedup = tree.expected_tokens(free["acceptance"])
    assert free["best"]["expected_speedup"] == pytest.approx(speedup)

    expensive = plan_with_cost(monkeypatch, lambda nodes: 1 + 0.5 * (nodes - 1))
    assert expensive["best"]["nodes"] == 2
    assert f"--tree {expensive['best']['paths']}" in plan.plan_text(expensive)

    linear = plan_with_cost(monkeypatch, lambda nodes: float(nodes))
    assert linear["best"] is None
    assert "decode plainly" in plan.plan_text(linear)


def test_unsteady_times_are_not_recommended(monkeypatch):
    """Four nodes have the least median, but their times vary a thousandfold."""
    unsteady = [0.001, 0.01, 1.0]
    some = plan_with_cost(
        monkeypatch, lambda nodes: unsteady if nodes == 4 else nodes**0.5
    )
    assert some["best"]["nodes"] in (2, 8)
    rows = plan.plan_text(some).splitlines()
    assert [row.split()[0] for row in rows if "unsteady" in row][:1] == ["4"]
    every = plan_with_cost(monkeypatch, lambda nodes: unsteady if nodes > 1 else 1.0)
    assert every["best"] is None
    assert "times vary too much" in plan.plan_text(every)


def test_plan_is_also_an_option(monkeypatch, capsys):
    result = plan_with_cost(monkeypatch, lambda nodes: 1.0)
    monkeypatch.setattr(plan, "plan_tree", lambda *_, **__: result)
    assert main(["bench", "--plan"]) == 0
    assert "best: 8 nodes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bench"])
    assert "choose a benchmark: generate, decode, verify" in capsys.readouterr().err
