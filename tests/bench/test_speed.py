"""Speed is measured against what bytes and operations allow; figures are in docs."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.bench import hardware, passes
from jaxspec.bench.hardware import Section, sections
from jaxspec.bench.roofline.ceilings import Ceilings, measure_ceilings
from jaxspec.bench.roofline.work import (
    Work,
    block_training_work,
    counted,
    matrix_sizes,
    pass_work,
    training_work,
)
from jaxspec.bench.synthetic import Forced, block_config, synthetic_params
from jaxspec.bench.tables import comparison_markdown
from jaxspec.bench.timing import time_interleaved
from jaxspec.bench.variants import Variant, find_variant
from jaxspec.cli import main
from jaxspec.cli.main import build_parser
from jaxspec.config import TransformerConfig
from jaxspec.drafters.kinds import make_drafter
from jaxspec.errors import ConfigError
from jaxspec.models.presets import preset
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer, parameter_count
from jaxspec.pipeline import Settings
from jaxspec.spec.cache import tree_mask
from jaxspec.spec.loop import generate
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine
from jaxspec.spec.tree import Tree
from jaxspec.train.drafter import make_step
from jaxspec.train.experiment import DrafterTrainingConfig
from jaxspec.train.optimizer import begin
from jaxspec.train.recipes.block_diffusion import ANCHORS

TINY = TransformerConfig(
    vocab_size=64, layers=3, width=64, heads=2, grid=8, classes=3, ffn_width=128
)


def test_bytes_and_operations_are_those_of_the_paper_size():
    """GPT-XL, bfloat16, guided batch of one: 0.5 ms at the 3 TB/s of an H100."""
    config = preset("gpt-xl", "class", 24)
    count, size = matrix_sizes(config, 2)
    tables = config.width * (config.vocab_size + config.classes + 1)
    assert count + tables + (2 * config.layers + 1) * config.width == parameter_count(
        config
    )
    assert size == 2 * (parameter_count(config) - tables)
    work = pass_work(config, rows=2, nodes=1, filled=288, itemsize=2)
    assert 0.50e-3 < work.bytes / 3e12 < 0.57e-3
    assert matrix_sizes(config, 2, int8=True)[1] == pytest.approx(size / 2, rel=0.01)


def test_the_formula_counts_the_operations_that_the_compiler_counts():
    target = make_target(Transformer(TINY))
    params = synthetic_params(TINY, "float32")
    tree = named_tree("mc_sim_7b_63")
    cache = target.prefill(params, jnp.zeros(4, jnp.int32), 64 + tree.size).cache

    def verify(params, cache):
        tokens = jnp.zeros((8, tree.size), jnp.int32)
        mask = tree_mask(cache, jnp.asarray(tree.ancestors))
        return target.forward(params, cache, tokens, tokens, mask)[0]

    compiler = counted(jax.jit(verify).lower(params, cache).compile())
    slots = cache.capacity - tree.size  # XLA's attention reads every slot
    work = pass_work(TINY, rows=8, nodes=tree.size, filled=slots, itemsize=4)
    assert compiler["counted_flops"] == pytest.approx(work.flops, rel=0.1)
    steps = training_work(TINY, rows=2, tokens=64)
    assert steps.flops > 3 * 2 * matrix_sizes(TINY, 4)[0] * 128


def test_a_drafters_step_is_counted_as_the_compiler_counts_it():
    """Less what is masked: the compiler counts all rows of all blocks by each other."""
    _, drafter = make_drafter(block_config(TINY), TINY)
    settings = DrafterTrainingConfig(steps=9, batch=4)
    state = begin(settings, drafter.init_params(jax.random.key(0)))
    codes, labels = jnp.zeros((4, 64), jnp.int32), jnp.zeros(4, jnp.int32)
    given = state, synthetic_params(TINY, "float32"), 0, (codes, labels, None)
    step = jax.jit(make_step(drafter, settings, {})).lower(*given).compile()
    work = block_training_work(drafter, rows=4, tokens=64, anchors=ANCHORS)
    size, layers = drafter.config.block_size, drafter.config.layers
    masked = 64 + ANCHORS * size - (64 + size) / 2
    masked = Work(0, 12 * 4 * ANCHORS * size * masked * layers * TINY.width)
    counts = counted(step)["counted_flops"]
    assert (work + masked).flops == pytest.approx(counts, rel=0.1)


def test_the_bound_is_the_larger_of_two():
    ceilings = Ceilings(bytes_per_second=10.0, flops_per_second=100.0, dtype="float32")
    assert Work(20, 100).bound(ceilings) == 2.0
    assert (Work(20, 100) + Work(0, 300)).bound(ceilings) == 4.0
    assert (Work(1, 1) * 20).bound(ceilings) == 2.0


def test_ceilings_are_measured_once():
    found = measure_ceilings("float32")
    assert found is measure_ceilings("float32")
    assert found.bytes_per_second > 1e8 and found.flops_per_second > 1e9


@pytest.mark.parametrize("tokens", [1.0, 3.5])
def test_forced_rounds_emit_as_many_tokens_as_they_are_told(tokens):
    """Whatever the drafter, here one that was never trained."""
    _, drafter = make_drafter(block_config(TINY), TINY)
    params = synthetic_params(TINY, "float32")
    own = drafter.with_target_params(drafter.init_params(jax.random.key(1)), params)
    engine = Engine(
        make_target(Transformer(TINY), feature_layers=drafter.feature_layers),
        64,
        drafter,
        Tree.chain(5),
        Forced(tokens),
        order=("temperature",),
    )
    rows = 16
    given = jnp.zeros(rows, jnp.int32), make_sampling(rows), batch_keys(0, rows)
    found = jax.jit(partial(generate, engine))(params, own, *given)
    rounds = np.asarray(found.stats.accepted)[:, : int(np.ceil(tokens))]
    assert rounds.sum() == np.asarray(found.stats.accepted).sum()  # never more
    mean = 64 * rows / int(found.stats.calls.sum())
    assert mean == pytest.approx(tokens, rel=0.12)  # prefills and last rounds are short


def test_forced_rounds_need_a_token():
    with pytest.raises(ConfigError, match="choose at least 1"):
        Forced(0.5)


def test_loops_and_passes_run_the_model_that_they_are_given():
    """The decode loop samples what the engine samples; passes leave the caches in place."""
    params = synthetic_params(TINY, "float32")
    model = Transformer(TINY)
    build = passes.local_compiler()
    tokens = np.asarray(passes.decode_program(model, params, 2, 16, build)())
    engine = Engine(make_target(model), 16, order=("temperature",))
    settings = Settings((0, 0), cfg_scale=passes.GUIDANCE)
    given = jnp.zeros(2, jnp.int32), settings.sampling(2), batch_keys(0, 2)
    expected = jax.jit(partial(generate, engine))(params, None, *given).tokens
    np.testing.assert_array_equal(tokens, expected)
    tree = named_tree("chain-3")
    for make in (passes.verify_program, passes.round_program):
        call = make(model, params, 2, tree, 33, 3, build)
        first, second = np.asarray(call()), np.asarray(call())
        np.testing.assert_array_equal(first, second)  # the same place each time


def test_ways_are_timed_in_turn():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = time_interleaved(calls, 2)
    assert order == ["a", "b"] * 3  # the first of each warms up
    assert times["a"].least <= times["a"].median <= times["a"].most
    assert times["a"].per(2).median == times["a"].median / 2


def test_variants_have_names():
    assert find_variant("pallas+int8") == Variant("pallas", True)
    assert find_variant("pallas+int8").suffix == ", pallas, int8"
    assert find_variant("stages4") == Variant(cache_stages=4)
    assert find_variant("stages4").suffix == ", 4 cache stages"
    assert find_variant("xla").suffix == ""
    with pytest.raises(ConfigError, match="unknown variant 'fast'"):
        find_variant("fast")
    with pytest.raises(ConfigError, match="drop stagesN"):
        find_variant("pallas+stages2")


def test_reports_are_compared_row_by_row():
    def report(device, **seconds):
        rows = [{"method": method, "seconds": s} for method, s in seconds.items()]
        return {"rows": rows, "device": device, "versions": {"jax": "1"}}

    text = comparison_markdown(report("cpu", a=3.0, b=1.0), report("gpu", a=2.0, c=1.0), ["method"])
    assert "| a | 1.50 (1 run) |" in text and "| b |" not in text
    assert "The device changed from gpu to cpu." in text
    assert "no rows in common" in comparison_markdown(report("x", a=1.0), report("x"), ["method"])


SHORT = ["--repeats", "1"]
MEASUREMENTS = {
    "decode": ["--tokens", "3", "--no-peers"],
    "verify": ["--nodes", "2", "--passes", "1"],
    "train": ["--parts", "prior", "--batch", "1", "--steps", "1"],
}


@pytest.fixture
def tiny(monkeypatch):
    """Stands in for the smallest published size, which takes seconds to compile."""
    monkeypatch.setattr("jaxspec.bench.synthetic.preset", lambda *_: TINY)


@pytest.mark.parametrize(
    "what",
    ["decode", *(pytest.param(x, marks=pytest.mark.slow) for x in ("verify", "train"))],
)
def test_every_row_says_how_near_the_bound_it_is(what, tiny, tmp_path, capsys):
    stem = str(tmp_path / what)
    command = ["bench", what, "--models", "gpt-b", *SHORT, *MEASUREMENTS[what]]
    assert main([*command, "--out", stem]) == 0
    report = json.loads((tmp_path / f"{what}.json").read_text())
    for row in report["rows"]:
        assert row["achieved"] == row["bound_seconds"] / row["seconds"] > 0
        assert row["min_seconds"] <= row["seconds"] <= row["max_seconds"]
    assert report["ceilings"]["bytes_per_second"] > 0
    assert (tmp_path / f"{what}.png").stat().st_size > 1000
    assert report["command"] in (tmp_path / f"{what}.md").read_text()
    # A second run over the same files is comparison_markdown with what they held before it.
    before = [row["seconds"] for row in report["rows"]]
    capsys.readouterr()
    assert main([*command, "--out", stem, "--compare", stem + ".json"]) == 0
    after = json.loads((tmp_path / f"{what}.json").read_text())["rows"]
    said = capsys.readouterr().out
    for row, seconds in zip(after, before, strict=True):
        assert f"| {row['seconds'] / seconds:.2f} (1 run) |" in said


WRONG = {
    "no such model": (["--models", "gpt-9"], "unknown model 'gpt-9'"),
    "no such file": (["--compare", "nowhere.json"], "is no report of this measurement"),
    "no option": (["--compiler-options", "fast"], "is no KEY=VALUE"),
    "no repeats": (["--repeats", "0"], "--repeats 0 must be at least 1"),
    "no batch": (["--batches", "4", "0"], "--batches 0 must be at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_measured_is_told_in_one_line(case, tmp_path, capsys):
    words, message = WRONG[case]
    assert main(["bench", "decode", *words, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_the_run_over_everything_knows_what_it_measures(device, monkeypatch):
    """Names and commands for any device; the commands are ones that users can give."""
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    found = list(sections("bfloat16", 3))
    assert len({section.name for section in found}) == len(found)
    for section in found:
        words = [*section.command.split(), "--out", "x"]
        arguments = build_parser().parse_args(words)
        assert arguments.command == "bench"
        for name in getattr(arguments, "variants", []):
            find_variant(name)
    assert any("gpt-xl" in section.command for section in found) == (device != "cpu")


def test_a_section_that_fails_or_comes_late_does_not_end_the_run(monkeypatch):
    def broken():
        raise RuntimeError("no such kernel\nand much more")

    def slow():
        clock[0] += 100.0
        return {"rows": []}

    clock, told = [0.0], []
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: clock[0])
    parts = {"a": broken, "b": slow, "c": slow}
    made = [
        Section(name, f"bench {name}", measure, lambda report: report["command"])
        for name, measure in parts.items()
    ]
    monkeypatch.setattr(hardware, "sections", lambda *_: made)
    result = hardware.bench_hardware(
        dtype="float32",
        repeats=1,
        minutes=1.5,
        keep=lambda result, table: told.append((table, list(result["sections"]))),
    )
    assert result["failed"] == {"a": "RuntimeError: no such kernel"}
    assert result["skipped"] == ["c"]
    assert list(result["sections"]) == ["b"]
    # What is there is handed over after each section.
    assert told[0][1] == [] and "no such kernel" in told[0][0]
    assert told[1] == ("jaxspec bench b --out STEM", ["b"])


def test_ways_that_fail_are_left_out_and_named():
    def broken():
        raise ValueError("no compiler")

    failed = {}
    times = time_interleaved({"a": broken, "b": lambda: None}, 1, failed=failed)
    assert list(times) == ["b"] and failed == {"a": "ValueError: no compiler"}
    with pytest.raises(ValueError, match="no compiler"):
        time_interleaved({"a": broken}, 1)
