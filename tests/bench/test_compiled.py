"""Ahead-of-time compilation for other devices, and kernel counts."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from docs.studies.compiled import devices, report
from docs.studies.compiled.devices import DeviceSpec, find_device
from docs.studies.compiled.next_scale import image_bound
from docs.studies.compiled.program import Loop, largest_loop
from jaxspec.bench.roofline.ceilings import Ceilings
from jaxspec.bench.synthetic import synthetic_params
from jaxspec.config import NextScaleConfig, TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale import presets
from jaxspec.models.next_scale.model import NextScale

TEXT = """
HloModule jit_run, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %add.9 = f32[8]{0} add(%p, %p)
}

%inner_body (i: (f32[8])) -> (f32[8]) {
  %i = (f32[8]{0}) parameter(0)
  %x.1 = f32[8]{0} get-tuple-element(%i), index=0
  %fusion.1 = f32[8]{0} fusion(%x.1), kind=kLoop, calls=%fused, \
backend_config={"estimated_cycles":"7"}
  ROOT %t.1 = (f32[8]{0}) tuple(%fusion.1)
}

%inner_condition (c: (f32[8])) -> pred[] {
  %c = (f32[8]{0}) parameter(0)
  ROOT %less = pred[] custom-call(%c), custom_call_target="less"
}

%outer_body (o: (f32[8])) -> (f32[8]) {
  %o = (f32[8]{0}) parameter(0)
  %x.2 = f32[8]{0} get-tuple-element(%o), index=0
  %start = (f32[8]{0:T(128)}, f32[8]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%x.2)
  %fusion.2 = (f32[8]{0}, f32[8]{0}) fusion(%x.2), kind=kLoop, calls=%fused, \
backend_config={"estimated_cycles":"100"}
  %done = f32[8]{0} copy-done(%start)
  %loop = (f32[8]{0}) while(%done), condition=%inner_condition, body=%inner_body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %own = (f32[8]{0}) custom-call(%loop), custom_call_target="kernel"
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %t.2 = (f32[8]{0}) tuple(%a)
  %w = (f32[8]{0}) while(%t.2), condition=%inner_condition, body=%outer_body
  ROOT %out = f32[8]{0} get-tuple-element(%w), index=0
}
"""
TINY = TransformerConfig(vocab_size=32, layers=2, width=32, heads=2, grid=4, classes=3)


def test_iteration_includes_inner_loops():
    """The text has an asynchronous copy, two kernels, and one that runs 3 times."""
    assert largest_loop(TEXT) == Loop(kernels=6, cycles=100 + 3 * 7)


def test_every_launched_kernel_counts():
    def program(products):
        def body(_, x):
            for _ in range(products):
                x = jnp.sort(x @ x, axis=0)
            return x

        run = jax.jit(lambda x: jax.lax.fori_loop(0, 4, body, x))
        return largest_loop(run.lower(jnp.ones((64, 64))).compile().as_text())

    one, two, three = (program(n).kernels for n in (1, 2, 3))
    assert three - two == two - one > 1


def test_largest_branch_of_a_conditional_counts():
    def program(products):
        def large(x):
            for _ in range(products):
                x = jnp.sort(x @ x, axis=0)
            return x

        def body(i, x):
            return jax.lax.cond(i > 2, large, lambda x: x + 1, x)

        run = jax.jit(lambda x: jax.lax.fori_loop(0, 4, body, x))
        return largest_loop(run.lower(jnp.ones((64, 64))).compile().as_text())

    one, two, three = (program(n).kernels for n in (1, 2, 3))
    assert three - two == two - one > 1


CELL = dict(devices=["cpu"], models=["tiny"], nodes=[5], grid=4, dtype="float32")


@pytest.fixture
def local_cpu(monkeypatch):
    """Registers this CPU as a compilation target, and a tiny model."""
    ceilings = Ceilings(1e9, 1e9, "float32")
    cpu = DeviceSpec("local CPU", ceilings, lambda: jax.devices()[0])
    monkeypatch.setitem(devices.DEVICES, "cpu", cpu)
    shapes = jax.eval_shape(partial(synthetic_params, TINY, "float32"))
    monkeypatch.setattr(report, "find_shapes", lambda *_, **__: (TINY, shapes))


@pytest.mark.slow
def test_every_program_has_a_row(local_cpu):
    result = report.measure_compiled(**CELL, variants=["xla"])
    rows = {row["program"]: row for row in result["rows"]}
    assert list(rows) == ["decode", "verify 5", "round 5"] and not result["failed"]
    # A round is a forward pass, noise, verification and commits.
    assert rows["round 5"]["kernels"] > rows["verify 5"]["kernels"] > 10
    assert rows["verify 5"]["bound_seconds"] > rows["decode"]["bound_seconds"] > 0
    text = report.compiled_markdown({"command": "c", **result})
    assert text.count("| local CPU | tiny | 1 | jaxspec |") == 3


def test_a_next_scale_model_has_one_program_and_a_bound(local_cpu, monkeypatch):
    sizes = dict(vocab_size=7, code_dim=3, layers=2, width=8, heads=2, classes=3)
    config = NextScaleConfig(**sizes, scales=(1, 2))
    monkeypatch.setitem(presets.PRESETS, "var-tiny", config)
    cell = {**CELL, "models": ["var-tiny"]}
    result = report.measure_compiled(**cell, variants=["xla", "int8"])
    (row,) = result["rows"]
    assert not result["failed"] and row["program"] == "image" and row["kernels"] > 10
    # Each of two maps reads all matrices once, and keys and values of 1 and 5 tokens.
    shapes = jax.eval_shape(NextScale(config).init, jax.random.key(0))
    matrices = [x for x in jax.tree_util.tree_leaves_with_path(shapes)
                if jax.tree_util.keystr(x[0]).endswith("['kernel']")]  # fmt: skip
    size = sum(x.size for _, x in matrices)
    bound = image_bound(config, 1, 1, Ceilings(1.0, 1e99, "float32"))
    assert bound == 2 * size + 2 * 2 * 2 * 8 * (1 + 5)


def test_impossible_variants_are_rejected_before_compilation(local_cpu):
    with pytest.raises(ConfigError, match="choose one of h100, v5e"):
        find_device("h200")
    for variant in ("stages2", "cudnn"):
        with pytest.raises(ConfigError, match="choose of xla, pallas, int8"):
            report.measure_compiled(**CELL, variants=["xla", variant])


@pytest.mark.parametrize("name, module", [("v5e", "libtpu"), ("h100", "jax_plugins")])
def test_missing_compiler_is_reported(name, module):
    try:
        __import__(module)
    except ImportError:
        with pytest.raises(ConfigError, match="pip install"):
            find_device(name)
    else:
        pytest.skip(f"{module} is installed")
