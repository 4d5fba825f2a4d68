"""The pages in docs/ do what they say."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import jaxspec
from tests.markdown import blocks

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "verification.md").read_text()


def test_a_rule_runs_in_somebody_elses_loop_and_changes_no_token(capsys):
    loop, module, proof = blocks("python", PAGE)
    assert sum(bool(line.strip()) for line in loop.splitlines()) < 30
    here = {}
    exec(compile(loop, "verification.md", "exec"), here)
    fast, _, calls = here["out"]
    here["tree"] = jaxspec.Tree.root()
    run = here["jax"].jit(here["run"], static_argnums=0)
    target = lambda p, a, b: p[b] + p[a] / 4  # noqa: E731
    plain, _, plain_calls = run(target, here["table"], jaxspec.batch_keys(0, 4))
    np.testing.assert_array_equal(fast[:, :40], plain[:, :40])
    assert plain_calls == 38 and calls < 30

    here["tree"] = jaxspec.Tree.named("0,1,00,01,10")
    exec(compile(module, "verification.md", "exec"), here)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(") ")[0] for line in lines] == ["(4, 40", "(4, 40"]
    assert here["out"][2] < 38
    exec(compile(proof, "verification.md", "exec"), here)
    # The file to run holds the same two programs.
    example = (DOCS / "examples" / "own_loop.py").read_text()
    assert loop.strip() in example and module.strip() in example


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_files_that_pages_point_to_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (DOCS / target).exists(), target


def test_drafters_page_runs(capsys):
    here = {}
    for code in blocks("python", (DOCS / "drafters.md").read_text()):
        exec(compile(code, "drafters.md", "exec"), here)
    assert (here["out"].stats.calls < 64).all()


def test_the_page_on_your_own_loop_has_the_readmes_example():
    text = (DOCS / "own_loop.md").read_text()
    assert blocks("python", text) == blocks("python")


def test_the_index_of_reports_lists_each_with_its_command():
    index = runpy.run_path(str(DOCS / "reports" / "make_index.py"))["index"]()
    assert (DOCS / "reports" / "index.md").read_text() == index


def test_every_plot_of_a_report_is_on_its_page():
    for plot in (DOCS / "reports").glob("*.png"):
        assert f"]({plot.name})" in plot.with_suffix(".md").read_text(), plot.name


@pytest.mark.slow
def test_the_scaling_page_draws_on_a_mesh_what_one_device_draws():
    (program,) = blocks("python", (DOCS / "scaling.md").read_text())
    here = {}
    exec(compile(program.replace("256", "12"), "scaling.md", "exec"), here)
    bundle = jaxspec.load_pipeline().bundle
    target = jaxspec.Transformer(bundle.prior.config).as_target()
    engine = jaxspec.Engine(target, 12)
    variables = jaxspec.Variables(bundle.prior.params)
    run = here["jax"].jit(engine.generate)
    wanted = run(variables, here["classes"], **here["options"]).tokens
    np.testing.assert_array_equal(here["tokens"], wanted)
