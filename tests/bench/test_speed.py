"""Speed benchmarks and their roofline bounds."""

import inspect
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.bench import generation, hardware, programs
from jaxspec.bench.description import load
from jaxspec.bench.hardware import Section, sections
from jaxspec.bench.registry import BENCHMARKS, DECODE
from jaxspec.bench.roofline.ceilings import Ceilings, measure_ceilings
from jaxspec.bench.roofline.work import (
    Work,
    block_training_work,
    compiler_counts,
    matrix_sizes,
    pass_work,
    training_work,
)
from jaxspec.bench.synthetic import Forced, block_config, synthetic_params
from jaxspec.bench.variants import Variant, find_variant
from jaxspec.checkpoint import parameter_count
from jaxspec.cli import main
from jaxspec.cli.main import build_parser
from jaxspec.config import TransformerConfig
from jaxspec.core.kv_cache import tree_mask
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.dflash.training import ANCHORS
from jaxspec.drafters.registry import make_drafter
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import comparison_markdown
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.presets import preset
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.generation import GenerationResult
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.timing import Timing
from jaxspec.pipeline.tree_choice.compiling import local_compiler
from jaxspec.pipeline.tree_choice.programs import pass_program
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.train.drafter import make_step
from jaxspec.train.optimizer import init_train_state
from jaxspec.train.settings import DrafterTrainingConfig

TINY = TransformerConfig(
    vocab_size=64, layers=3, width=64, heads=2, grid=8, classes=3, ffn_width=128
)


@pytest.mark.slow
def test_bytes_and_flops_of_gpt_xl():
    """bfloat16, batch 1 with CFG: 0.5 ms at the 3 TB/s of an H100."""
    config = preset("gpt-xl", "class", 24)
    count, size = matrix_sizes(config, 2)
    tables = config.width * (config.vocab_size + config.classes + 1)
    assert count + tables + (2 * config.layers + 1) * config.width == parameter_count(
        config
    )
    assert size == 2 * (parameter_count(config) - tables)
    work = pass_work(config, sequences=2, nodes=1, filled=288, itemsize=2)
    assert 0.50e-3 < work.bytes / 3e12 < 0.57e-3
    assert matrix_sizes(config, 2, int8=True)[1] == pytest.approx(size / 2, rel=0.01)


def test_formula_matches_the_flops_of_the_compiler():
    target = Transformer(TINY).as_target()
    params = synthetic_params(TINY, "float32")
    tree = Tree.named("mc_sim_7b_63")
    cache = target.prefill(params, jnp.zeros(4, jnp.int32), 64 + tree.size).cache

    def verify(params, cache):
        tokens = jnp.zeros((8, tree.size), jnp.int32)
        mask = tree_mask(cache, jnp.asarray(tree.ancestors))
        return target.forward(params, cache, tokens, tokens, mask)[0]

    compiler = compiler_counts(jax.jit(verify).lower(params, cache).compile())
    slots = cache.capacity - tree.size  # XLA's attention reads every slot
    work = pass_work(TINY, sequences=8, nodes=tree.size, filled=slots, itemsize=4)
    assert compiler["counted_flops"] == pytest.approx(work.flops, rel=0.1)
    steps = training_work(TINY, batch=2, tokens=64)
    assert steps.flops > 3 * 2 * matrix_sizes(TINY, 4)[0] * 128


@pytest.mark.slow
def test_formula_matches_a_drafters_training_step():
    """The compiler also counts masked attention, between all queries of all blocks."""
    drafter = make_drafter(block_config(TINY), TINY)
    settings = DrafterTrainingConfig(steps=9, batch=4)
    state = init_train_state(settings, drafter.init_params(jax.random.key(0)))
    tokens, labels = jnp.zeros((4, 64), jnp.int32), jnp.zeros(4, jnp.int32)
    args = state, synthetic_params(TINY, "float32"), 0, (tokens, labels, None)
    step = jax.jit(make_step(drafter, settings, {})).lower(*args).compile()
    work = block_training_work(drafter, batch=4, tokens=64, anchors=ANCHORS)
    size, layers = drafter.config.block_size, drafter.config.layers
    masked = 64 + ANCHORS * size - (64 + size) / 2
    masked = Work(0, 12 * 4 * ANCHORS * size * masked * layers * TINY.width)
    counts = compiler_counts(step)["counted_flops"]
    assert (work + masked).flops == pytest.approx(counts, rel=0.1)


def test_bound_is_the_larger_of_two():
    ceilings = Ceilings(bytes_per_second=10.0, flops_per_second=100.0, dtype="float32")
    assert Work(20, 100).bound(ceilings) == 2.0
    assert (Work(20, 100) + Work(0, 300)).bound(ceilings) == 4.0
    assert (Work(1, 1) * 20).bound(ceilings) == 2.0


def test_ceilings_are_measured_once():
    ceilings = measure_ceilings("float32")
    assert ceilings is measure_ceilings("float32")
    assert ceilings.bytes_per_second > 1e8 and ceilings.flops_per_second > 1e9


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1.0, 3.5])
def test_forced_rounds_emit_a_mean_number_of_tokens(tokens):
    """The drafter is untrained."""
    drafter = make_drafter(block_config(TINY), TINY)
    params = synthetic_params(TINY, "float32")
    drafter_params = drafter.init_params(jax.random.key(1))
    drafter_params = drafter.with_target_params(drafter_params, params)
    engine = Engine(
        Transformer(TINY).as_target(),
        64,
        drafter,
        Tree.chain(5),
        Forced(tokens),
        order=("temperature",),
    )
    batch = 16
    stats = jax.jit(engine.generate)(
        Variables(params, drafter_params),
        jnp.zeros(batch, jnp.int32),
        sampling=Sampling.create(),
        keys=batch_keys(0, batch),
    ).stats
    rounds = np.asarray(stats.accepted)[:, : int(np.ceil(tokens))]
    assert rounds.sum() == np.asarray(stats.accepted).sum()  # never more
    mean = 64 * batch / int(stats.calls.sum())
    assert mean == pytest.approx(tokens, rel=0.12)  # prefills and last rounds are short


def test_forced_rounds_need_a_token():
    with pytest.raises(ConfigError, match="choose at least 1"):
        Forced(0.5)


@pytest.mark.slow
def test_programs_run_the_model():
    """Decoding matches the engine; other programs leave cache lengths unchanged."""
    params = synthetic_params(TINY, "float32")
    model = Transformer(TINY)
    compiler = local_compiler()
    tokens = np.asarray(programs.decode_program(model, params, 2, 16, compiler)())
    engine = Engine(model.as_target(), 16, order=("temperature",))
    settings = GenerationConfig(cfg_scale=programs.CFG_SCALE)
    expected = jax.jit(engine.generate)(
        Variables(params),
        jnp.zeros(2, jnp.int32),
        sampling=settings.sampling(2),
        keys=batch_keys(0, 2),
    ).tokens
    np.testing.assert_array_equal(tokens, expected)
    tree = Tree.named("chain-3")
    for make in (pass_program, programs.round_program):
        call = make(model, params, 2, tree, 33, 3, compiler)
        first, second = np.asarray(call()), np.asarray(call())
        np.testing.assert_array_equal(first, second)  # equal inputs


def test_calls_are_timed_interleaved():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = time_interleaved(calls, 2)
    assert order == ["a", "b"] * 3  # the first of each warms up
    assert times["a"].minimum <= times["a"].median <= times["a"].maximum
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


def test_reports_are_compared_by_row():
    def report(device, **seconds):
        rows = [{"method": method, "seconds": s} for method, s in seconds.items()]
        return {"rows": rows, "device": device, "versions": {"jax": "1"}}

    text = comparison_markdown(
        report("cpu", a=3.0, b=1.0), report("gpu", a=2.0, c=1.0), ["method"]
    )
    assert "| a | 1.50 (1 run) |" in text and "| b |" not in text
    assert "The device changed from gpu to cpu." in text
    assert "no rows in common" in comparison_markdown(
        report("x", a=1.0), report("x"), ["method"]
    )


SHORT = ["--repeats", "1"]
MEASUREMENTS = {
    "decode": ["--tokens", "3", "--no-baselines"],
    "verify": ["--nodes", "2", "--passes", "1"],
    "train": ["--parts", "prior", "--batch", "1", "--steps", "1"],
}


@pytest.fixture
def tiny(monkeypatch):
    """Replaces the smallest published size, which takes seconds to compile."""
    monkeypatch.setattr("jaxspec.bench.synthetic.preset", lambda *_: TINY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "benchmark",
    ["decode", *(pytest.param(x, marks=pytest.mark.slow) for x in ("verify", "train"))],
)
def test_every_row_has_its_fraction_of_the_bound(benchmark, tiny, tmp_path, capsys):
    stem = str(tmp_path / benchmark)
    command = [
        "bench",
        benchmark,
        "--models",
        "gpt-b",
        *SHORT,
        *MEASUREMENTS[benchmark],
    ]
    assert main([*command, "--out", stem]) == 0
    report = json.loads((tmp_path / f"{benchmark}.json").read_text())
    for row in report["rows"]:
        assert row["achieved"] == row["bound_seconds"] / row["seconds"] > 0
        assert row["min_seconds"] <= row["seconds"] <= row["max_seconds"]
    assert report["ceilings"]["bytes_per_second"] > 0
    assert (tmp_path / f"{benchmark}.png").stat().st_size > 1000
    assert report["command"] in (tmp_path / f"{benchmark}.md").read_text()
    # A second run that overwrites the files is compared with their old content.
    before = [row["seconds"] for row in report["rows"]]
    capsys.readouterr()
    assert main([*command, "--out", stem, "--compare", stem + ".json"]) == 0
    after = json.loads((tmp_path / f"{benchmark}.json").read_text())["rows"]
    output = capsys.readouterr().out
    for row, seconds in zip(after, before, strict=True):
        assert f"| {row['seconds'] / seconds:.2f} (1 run) |" in output


INVALID = {
    "no such model": (["--models", "gpt-9"], "unknown model 'gpt-9'"),
    "no such file": (
        ["--compare", "nowhere.json"],
        "is not a report of this benchmark",
    ),
    "no option": (["--compiler-options", "fast"], "must be KEY=VALUE"),
    "no repeats": (["--repeats", "0"], "--repeats 0 must be at least 1"),
    "no batch": (["--batches", "4", "0"], "--batches 0 must be at least 1"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_options_are_reported_in_one_line(case, tmp_path, capsys):
    options, message = INVALID[case]
    assert main(["bench", "decode", *options, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_hardware_sections_have_valid_commands(device, monkeypatch):
    """Section names are unique, and their commands can be parsed."""
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    device_sections = list(sections("bfloat16", 3))
    names = {section.name for section in device_sections}
    assert len(names) == len(device_sections)
    for section in device_sections:
        program, *words = section.command.split()
        arguments = build_parser().parse_args(words)
        assert program == "jaxspec" and arguments.benchmark == section.benchmark.name
        assert section.benchmark.values(vars(arguments)) == section.values
        for name in section.values.get("variants", []):
            find_variant(name)
    large = any("gpt-xl" in section.command for section in device_sections)
    assert large == (device != "cpu")


def test_failed_and_late_sections_do_not_end_the_run(monkeypatch):
    def broken():
        raise RuntimeError("no such kernel\nand much more")

    def slow():
        clock[0] += 100.0
        return {"rows": []}

    clock, saved = [0.0], []
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: clock[0])
    parts = {"a": broken, "b": slow, "c": slow}
    fake_sections = [
        Section(name, replace(DECODE, name=name, options=(), measure=measure), {})
        for name, measure in parts.items()
    ]
    monkeypatch.setattr(hardware, "sections", lambda *_: fake_sections)
    monkeypatch.setitem(hardware._MARKDOWN, "b", lambda report: "# Table\n")
    result = hardware.measure_hardware(
        dtype="float32",
        repeats=1,
        minutes=1.5,
        save=lambda result: saved.append(
            hardware.hardware_markdown({"command": "c", **result})
        ),
    )
    assert result["failed"] == {"a": "RuntimeError: no such kernel"}
    assert result["skipped"] == ["c"]
    assert list(result["sections"]) == ["b"]
    assert result["sections"]["b"]["command"] == "jaxspec bench b --out STEM"
    # The report is saved after each section.
    assert "no such kernel" in saved[0] and "## b: Table" not in saved[0]
    assert "no such kernel" in saved[1] and "## b: Table" in saved[1]
    assert len(saved) == 2


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda x: x.name)
def test_functions_take_the_options_of_their_benchmark(benchmark):
    """Names and defaults agree; callbacks are the only further arguments."""
    parameters = inspect.signature(load(benchmark.measure)).parameters
    callbacks = set(["save"] * benchmark.saves + ["earlier"] * benchmark.resumes)
    assert parameters.keys() == {x.key for x in benchmark.options} | callbacks
    for option in benchmark.options:
        default = parameters[option.key].default
        if option.key != "drafters":  # training-free ones are a choice of the command
            assert default == option.default, option.name
    assert callable(load(benchmark.markdown))
    if benchmark.plot:
        assert callable(load(benchmark.plot))


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda x: x.name)
def test_command_of_a_report_gives_its_options(benchmark):
    given = {}
    for option in benchmark.options:
        if option.choices:
            value = option.choices[-1]
        else:
            value = {int: 7, float: 1.5, str: "x", bool: True}[option.kind]
        given[option.key] = [value, value] if option.several else value
    values = benchmark.values(given)
    assert values == given
    arguments = build_parser().parse_args(benchmark.command(values, "x").split()[1:])
    assert benchmark.values(vars(arguments)) == given and arguments.out == "x"


def test_failing_calls_are_skipped_and_reported():
    def broken():
        raise ValueError("no compiler")

    errors = {}
    times = time_interleaved({"a": broken, "b": lambda: None}, 1, errors=errors)
    assert list(times) == ["b"] and errors == {"a": "ValueError: no compiler"}
    with pytest.raises(ValueError, match="no compiler"):
        time_interleaved({"a": broken}, 1)


def test_both_sides_of_a_speedup_have_the_same_settings(monkeypatch):
    """Models, settings, batches and repeats are equal, and the result lists them."""
    calls, tree = [], Tree.chain(2)

    def measured(bundle, prompts, config, tree, **how):
        given = bundle, prompts, config
        calls.append((tree.size, *given, how["repeats"], how["warm_up"]))
        count = len(prompts)
        return GenerationResult(
            tokens=np.zeros((count, 256), int),
            calls=np.full(count, 256 // tree.size),
            accepted=np.zeros((count, tree.depth + 1), int),
            hits=np.zeros((count, max(tree.depth, 1), 1), int),
            proposed=np.zeros(count, int),
            rescored=0,
            timing=Timing.exact(3.0 / tree.size),
            compile_seconds=9.0,
        )

    monkeypatch.setattr(generation, "generate", measured)
    costs = {"verify_cost": 1.5, "draft_cost": 0.5}
    monkeypatch.setattr(generation, "round_costs", lambda *_: costs)
    bundle = load_bundle("fruits64")
    trees = {"a": tree, "b": Tree.chain(3)}
    rows = generation.bench_generation(bundle, trees, [1, 4], [2.0], num=4, repeats=3)
    assert [size for size, *_ in calls] == [1, 3, 4, 1, 3, 4]
    for side in (calls[:3], calls[3:]):  # one batch size; its plain run comes first
        assert all(call[1:] == side[0][1:] for call in side)
    assert [call[3].batch_size for call in calls[::3]] == [1, 4]
    assert all(call[4:] == (3, True) for call in calls)  # compiled before it is timed
    assert [row["speedup"] for row in rows] == [3, 4] * 2  # without compilation
    assert [row["batch"] for row in rows] == [1, 1, 4, 4]
    for row in rows:
        assert row["temperature"] == 1.0 and row["dtype"] == "float32" and row["device"]
