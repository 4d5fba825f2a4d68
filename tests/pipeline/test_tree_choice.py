"""Automatic choice of the draft tree: the fastest that was measured, or none."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxspec
from jaxspec.cli import main
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.tree_choice import choice, choose_tree, fastest_tree, record
from jaxspec.pipeline.tree_choice.choice import with_estimates
from jaxspec.pipeline.tree_choice.costs import RoundCosts, measure_costs
from jaxspec.speculative.trees.tree import Tree
from tests.tiny_bundle import save_bundle

LABELS, SETTINGS = [0, 2, 1], {"seed": 5, "cfg_scale": 2.0, "batch_size": 2}
CONFIG = jaxspec.GenerationConfig(cfg_scale=2.0, batch_size=2)
CHEAP = RoundCosts(1.0, {4: 1.02, 8: 1.05})
DEAR = RoundCosts(1.0, {4: 5.0, 8: 9.0})
ACCEPTANCE = ((0.6, 0.2), (0.5, 0.1))


@pytest.fixture
def folder(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def measured(monkeypatch):
    """Replaces the measurement by costs; returns their list and the calls."""
    given, calls = [CHEAP], []

    def measure(bundle, prompts, config, loaded, sizes, batch):
        calls.append(batch)
        return given[0]

    monkeypatch.setattr(choice, "measure_costs", measure)
    monkeypatch.setattr(choice, "MIN_OPERATIONS", {})
    monkeypatch.setattr(choice, "ACCELERATOR_MIN_OPERATIONS", 0)
    return given, calls


def fastest(costs, acceptance):
    """The choice for a drafter whose acceptance depends on no tree."""
    return fastest_tree(costs, lambda nodes: acceptance, lambda nodes: 4, "")


rate = st.floats(0.01, 0.5)
cost = st.floats(0.1, 20.0)


@given(
    st.tuples(rate, rate), st.dictionaries(st.integers(2, 12), cost, min_size=1), cost
)
def test_the_choice_is_the_fastest_of_all_that_were_measured(rates, rounds, step):
    acceptance = (rates,)
    chosen = fastest(RoundCosts(step, rounds), acceptance)
    speeds = {}
    for nodes, seconds in rounds.items():
        tree = Tree.optimal(acceptance, nodes, 4)
        # No round is cheaper than its pass.
        speeds[tree] = tree.expected_tokens(acceptance) * step / max(seconds, step)
    if max(speeds.values()) < choice.MIN_SPEEDUP:
        assert chosen.tree == Tree.root()
    else:
        assert speeds[chosen.tree] == chosen.speedup == max(speeds.values())


def test_costs_of_larger_trees_are_estimated_by_a_line_and_a_tenth():
    """One third of a step for each node more, and no cost below the measured ones."""
    costs = RoundCosts(3.0, {4: 6.0, 2: 5.0})
    assert with_estimates(costs, [8]).rounds == {8: pytest.approx(11.0), **costs.rounds}
    cheap = with_estimates(RoundCosts(3.0, {4: 2.0}), [8]).rounds
    assert cheap == {8: pytest.approx(2.2), 4: 2.0}
    assert with_estimates(costs, []).rounds == costs.rounds


def test_the_size_that_promises_most_is_measured_first(folder, measured, monkeypatch):
    """Long drafts that are accepted make 8 nodes better than 4, short ones do not."""
    asked = []
    make = choice.measure_costs

    def measure(bundle, prompts, config, loaded, sizes, batch):
        asked.append(tuple(sizes))
        return make(bundle, prompts, config, loaded, sizes, batch)

    monkeypatch.setattr(choice, "measure_costs", measure)
    pipe = jaxspec.load_pipeline(folder)
    for rate in (0.9, 0.3):
        loaded = replace(pipe.loaded, acceptance=((rate,),) * 8)
        choose_tree(pipe.bundle, Prompts.from_classes(LABELS), CONFIG, loaded)
    assert asked[0][0] == 8 and asked[1][0] < 8


def test_a_tree_of_twice_the_nodes_is_chosen_by_its_estimate(folder, measured):
    """Of eight nodes whose pass costs hardly more than a step."""
    pipe = jaxspec.load_pipeline(folder)
    prompts = Prompts.from_classes(LABELS)
    vocab = pipe.bundle.prior.config.vocab_size
    surely = replace(pipe.loaded, acceptance=((0.97,),) * 20, drafter=Jacobi(vocab))
    chosen = choose_tree(pipe.bundle, prompts, CONFIG, surely)
    assert chosen.tree == Tree.chain(15)
    assert "estimated from 8 nodes" in chosen.reason
    # Deeper drafts than were measured are none.
    shallow = replace(surely, acceptance=((0.97,),) * 7)
    chosen = choose_tree(pipe.bundle, prompts, CONFIG, shallow)
    assert chosen.tree == Tree.chain(7) and "estimated" not in chosen.reason


def test_sizes_that_were_not_measured_are_estimated_too(folder, measured):
    """Four nodes, if only a pass over eight was measured and deep nodes are wasted."""
    given, _ = measured
    given[0] = RoundCosts(1.0, {8: 3.0})
    pipe = jaxspec.load_pipeline(folder)
    rates = ((0.95,),) * 3 + ((0.01,),) * 17
    drafter = Jacobi(pipe.bundle.prior.config.vocab_size)
    loaded = replace(pipe.loaded, acceptance=rates, drafter=drafter)
    chosen = choose_tree(pipe.bundle, Prompts.from_classes(LABELS), CONFIG, loaded)
    assert chosen.tree == Tree.chain(3)
    assert "estimated from 8 nodes" in chosen.reason


def test_timings_that_vary_must_promise_more():
    rounds = {4: 1.6}  # 2.1 tokens a call
    steady = fastest(RoundCosts(1.0, rounds), ACCEPTANCE)
    unsteady = fastest(RoundCosts(1.0, rounds, steady=False), ACCEPTANCE)
    assert steady.tree.size == 4 and 1.2 < steady.speedup < 1.4
    assert unsteady.tree == Tree.root() and "vary" in str(unsteady)
    assert fastest(CHEAP, ((0.0,),)).tree == Tree.root()


def test_an_untrained_drafter_has_the_acceptance_that_its_prior_records(folder):
    """It is that of trees of about the size; they are as deep as it was measured."""
    bundle = load_bundle(folder)
    assert load_drafter("jacobi", bundle).acceptance_at(9) is None
    assert load_drafter("jacobi", bundle).tree("optimal-13").depth < 12
    tables = {"13": [[0.9, 0.01]] * 12, "4": [[0.3, 0.2], [0.1]]}
    metadata = {**bundle.prior.metadata, "acceptance": {"jacobi": tables}}
    recorded = replace(bundle, prior=replace(bundle.prior, metadata=metadata))
    jacobi = load_drafter("jacobi", recorded)
    assert jacobi.acceptance_at(13) == jacobi.acceptance_at(99) == ((0.9, 0.01),) * 12
    few = ((0.3, 0.2), (0.1,))
    assert jacobi.acceptance_at(2) == jacobi.acceptance_at(12) == few
    assert jacobi.tree("optimal-13") == Tree.chain(12)
    assert jacobi.tree("optimal-4") == Tree.named("0,1,00")
    assert load_drafter("recycling", recorded).acceptance_at(13) is None


def test_cheap_passes_are_drafted_for_and_dear_ones_are_not(folder, measured):
    given, calls = measured
    pipe = jaxspec.load_pipeline(folder)
    plain = pipe(LABELS, tree="root", **SETTINGS)
    assert plain.choice is None
    fast = pipe(LABELS, **SETTINGS)
    assert fast.choice.tree.size == 8 and fast.stats.proposed.sum() > 0
    again = pipe(LABELS, tree="auto", **SETTINGS)
    assert calls == [2] and "as measured before" in str(again.choice)
    assert "s to decode" in str(again.choice)  # 2 batches of 16 steps of a second
    given[0] = DEAR
    slow = jaxspec.load_pipeline(folder)(LABELS, **SETTINGS)
    assert slow.choice.tree == Tree.root() and not slow.stats.proposed.sum()
    assert str(slow.choice).startswith("plain decoding: 4 nodes would reach")
    for out in (fast, again, slow):
        np.testing.assert_array_equal(out.tokens, plain.tokens)


@pytest.mark.slow
def test_nothing_is_measured_where_it_would_not_pay_or_change_tokens(
    folder, measured, monkeypatch
):
    _, calls = measured
    pipe = jaxspec.load_pipeline(folder)
    lossy = pipe(LABELS, verifier="typical", **SETTINGS)
    assert lossy.choice.tree == pipe.loaded.tree()
    monkeypatch.setattr(choice, "ACCELERATOR_MIN_OPERATIONS", 1e12)
    monkeypatch.setattr(choice, "MIN_OPERATIONS", {"cpu": 1e12})
    short = pipe(LABELS, **SETTINGS)
    assert short.choice.tree == Tree.root() and not calls
    assert "not every CPU gains" in str(short.choice)
    elsewhere = choice._unmeasured(pipe.loaded, "short", "gpu")
    assert elsewhere.tree == pipe.loaded.tree()
    assert jaxspec.load_pipeline(folder, drafter=None)(LABELS).choice is None


@pytest.mark.variants(1)
@pytest.mark.parametrize("drafter", ["jacobi", "recycling", "ngrams", "early-exit-1"])
def test_costs_of_full_rounds_are_measured(folder, drafter):
    pipe = jaxspec.load_pipeline(folder, drafter=drafter)
    config = jaxspec.GenerationConfig(cfg_scale=2.0)
    prompts = Prompts.from_classes([0])
    result = measure_costs(pipe.bundle, prompts, config, pipe.loaded, (4, 8), 2)
    assert {4} <= set(result.rounds) <= {4, 8}
    # On a loaded machine timings vary, and are then named unsteady.
    assert 0 < result.step and (result.step < result.rounds[4] * 4 or not result.steady)


def test_costs_are_measured_after_given_tokens(folder):
    pipe = jaxspec.load_pipeline(folder)
    prompts = Prompts.from_classes([0]).with_prefix(
        np.zeros((1, 8), np.int32), pipe.bundle.prior.config
    )
    config = jaxspec.GenerationConfig(cfg_scale=2.0)
    result = measure_costs(pipe.bundle, prompts, config, pipe.loaded, (4,), 2)
    assert result.step > 0 and result.rounds[4] > 0


@pytest.mark.slow
def test_costs_are_kept_beside_compiled_programs(folder, measured, tmp_path):
    given, calls = measured
    before = getattr(jax.config, "jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        for _ in range(2):
            assert jaxspec.load_pipeline(folder)(LABELS, **SETTINGS).choice.speedup > 1
        assert len(calls) == 1
        jaxspec.load_pipeline(folder)(LABELS[:1], **SETTINGS)  # another batch size
        assert len(calls) == 2
        for file in tmp_path.glob("round_costs-*.json"):
            file.write_text("damaged")
        jaxspec.load_pipeline(folder)(LABELS, **SETTINGS)
        assert len(calls) == 3
        record.save_costs("unsteady", RoundCosts(1.0, {4: 1.0}, steady=False))
        assert record.load_costs("unsteady") is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_the_command_prints_its_choice_and_compares_with_drafts(
    folder, measured, tmp_path, capsys
):
    given, _ = measured
    out, report = str(tmp_path / "a.png"), str(tmp_path / "a.json")
    command = ["generate", "--checkpoint", str(folder), "--num", "2", "--out", out]
    assert main([*command, "--report", report]) == 0
    assert "tree        8 nodes: " in capsys.readouterr().err
    assert json.load(open(report))["tree"]["nodes"] == 8
    given[0] = DEAR
    assert main([*command, "--report", report]) == 0
    assert "tree        plain decoding: 4 nodes would reach" in capsys.readouterr().err
    assert json.load(open(report))["drafter"] == "none"
    assert main([*command, "--report", report, "--compare"]) == 0
    fields = json.load(open(report))
    assert fields["tree"]["nodes"] > 1 and fields["identical_to_autoregressive"]
