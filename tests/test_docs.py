"""Pages of docs/: programs run, commands parse, names and files exist."""

import importlib
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import jaxspec
from tests.commands import check_command, commands_in
from tests.markdown import blocks

DOCS = Path(__file__).parents[1] / "docs"
OTHERS = [DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md")]


@pytest.mark.slow
def test_a_verifier_runs_in_a_loop_without_the_engine_and_changes_no_token(capsys):
    page = (DOCS / "verification.md").read_text()
    loop, module, relaxation, proof = blocks("python", page)
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
    exec(compile(relaxation, "verification.md", "exec"), here)
    assert here["row"].verifier == "lantern:k=8,lam=2.0" and here["row"].tv > 0
    exec(compile(proof, "verification.md", "exec"), here)
    # The file to run holds the same two programs.
    example = (DOCS / "examples" / "own_loop.py").read_text()
    assert loop.strip() in example and module.strip() in example


PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_pages_point_to_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (DOCS / target).exists(), target


CHECKPOINTS = DOCS.parent / "checkpoints" / "README.md"


@pytest.mark.parametrize("page", [*PAGES, CHECKPOINTS], ids=lambda p: p.name)
def test_commands_on_pages_parse(page):
    for command in commands_in(page.read_text()):
        check_command(command)


def test_every_program_on_a_page_is_run():
    """By a test of this module; those of the README by `test_readme.py`."""
    here = Path(__file__).read_text()
    for page in PAGES:
        if blocks("python", page.read_text()):
            run = f'run_page("{page.name}"', f'(DOCS / "{page.name}").read_text()'
            assert any(call in here for call in run), page.name
    fences = [re.findall(r"```(\w+)", page.read_text()) for page in PAGES + OTHERS]
    assert {x for y in fences for x in y} <= {"python", "sh", "bash", "text", "bibtex"}


# Names of earlier versions; the changelog has what replaced them.
GONE = (
    "spec_step|make_target|make_sampling|make_limits|load_bundle|row_keys|named_tree|"
    r"over_rows|run_stream|begin_stream|jaxspec\.spec\b|jaxspec/spec/|jaxspec\.generate\b|"
    "jaxspec/train/recipes|verifier_params=|--rule"
)


@pytest.mark.parametrize("page", PAGES + OTHERS, ids=lambda p: p.name)
def test_names_on_pages_exist(page):
    text = page.read_text()
    assert re.findall(GONE, text) == []
    for name in re.findall(r"\bjaxspec(?:\.\w+)+", text):
        if name.rsplit(".", 1)[1] in ("py", "md", "json"):
            continue
        thing = jaxspec
        for part in name.split(".")[1:]:
            if not hasattr(thing, part):
                thing = importlib.import_module(f"{thing.__name__}.{part}")
            else:
                thing = getattr(thing, part)
    for path in re.findall(r"`((?:jaxspec|tests|configs)/[\w/]+\.py)", text):
        assert (DOCS.parent / path).is_file(), path


def run_page(page, *replacements):
    """Runs the programs of a page one after another, and returns their names."""
    names = {}
    for code in blocks("python", (DOCS / page).read_text()):
        for old, new in replacements:
            code = code.replace(old, new)
        exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.slow
def test_drafters_page_runs():
    assert (run_page("drafters.md")["out"].stats.calls < 64).all()


@pytest.mark.slow
def test_page_on_next_scale_models_runs(capsys):
    out = run_page("next_scale.md")["out"]
    assert out.tokens.shape == (2, 21) and (out.stats.calls == 1).all()


@pytest.mark.slow
def test_page_on_continuous_tokens_runs(capsys):
    out = run_page("continuous.md")["out"]
    assert out.tokens.shape == (2, 16, 4) and (out.stats.calls < 8).all()


@pytest.mark.slow
def test_page_on_masked_models_runs(capsys):
    out = run_page("masked.md")["out"]
    assert out.tokens.shape == (2, 16) and (out.stats.calls == 4).all()


@pytest.mark.slow
def test_page_on_the_watermark_runs(capsys):
    names = run_page("watermark.md")
    found = [names["mark"].detect(x) for x in (names["out"].tokens, names["tokens"])]
    assert found[0].p_value > 1e-4 > found[1].p_value


@pytest.mark.slow
def test_page_on_your_own_loop_runs(capsys):
    names = run_page("own_loop.md", ("naive_extend_57", "chain-2"))
    assert capsys.readouterr().out.startswith("(3, 256) [")
    np.testing.assert_array_equal(names["recorded"].tokens, names["wanted"].tokens)
    ids = np.asarray(names["finished"].ids)
    assert sorted(ids[ids >= 0]) == list(range(6))


@pytest.mark.slow
def test_page_to_get_started_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page("get_started.md")
    for name in ("cherry.png", "continued.png", "mixed.png"):
        assert (tmp_path / name).is_file()
    np.testing.assert_array_equal(names["preview"].tokens, names["out"].tokens)


@pytest.mark.slow
def test_page_on_your_own_model_runs():
    names = run_page("own_model.md")
    out = names["out"]
    assert (out.stats.calls < 40).all()
    np.testing.assert_allclose(out.tokens_per_call, 40 / out.stats.calls)
    np.testing.assert_allclose(out.mean_tokens_per_call, 40 / out.stats.calls.mean())
    plain = jaxspec.Engine(names["target"], 40)
    tokens = plain.generate(
        plain.variables(names["params"]),
        names["prompt"],
        sampling=jaxspec.Sampling.create(temperature=0.7),
        keys=names["jax"].random.key(0),
    ).tokens
    np.testing.assert_array_equal(names["out"].tokens, tokens)


@pytest.mark.slow
def test_page_on_your_own_drafter_runs(capsys):
    names = run_page("own_drafter.md")
    assert "Hasty.outcome is biased" in capsys.readouterr().out
    page = " ".join((DOCS / "own_drafter.md").read_text().split())
    assert " ".join(names["message"].split()) in page
    plain = jaxspec.Engine(names["target"], 40)
    tokens = plain.generate(
        plain.variables(names["target_params"]),
        names["prompt"],
        sampling=jaxspec.Sampling.create(),
        keys=names["jax"].random.key(0),
    ).tokens
    np.testing.assert_array_equal(names["out"].tokens, tokens)


def test_page_on_converting_answers_and_has_a_family_that_loads(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    from tests.text_model import write_model

    model = repr(str(write_model(tmp_path)))  # in the place of a released one
    names = run_page("converting.md", ('"smollm2"', model))
    assert len(names["rules"]) > 2
    assert capsys.readouterr().out


def test_the_index_of_reports_lists_each_with_its_command():
    index = runpy.run_path(str(DOCS / "reports" / "make_index.py"))["index"]()
    assert (DOCS / "reports" / "index.md").read_text() == index


def test_every_plot_of_a_report_is_on_its_page():
    for plot in (DOCS / "reports").glob("*.png"):
        assert f"]({plot.name})" in plot.with_suffix(".md").read_text(), plot.name


@pytest.mark.slow
def test_the_scaling_page_generates_the_same_images_on_a_mesh():
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


def test_page_on_training_runs(monkeypatch):
    """`tests/train` trains; here the embedded bundle takes the place of the result."""
    from jaxspec.pipeline.embedded import CLASSES, embedded_folder

    def train_all(images, workdir, *, minutes):
        return embedded_folder() / CLASSES

    monkeypatch.setattr("jaxspec.train.all_parts.train_all", train_all)
    here = run_page("training.md", ("bundle =", "import jaxspec\nbundle ="))
    assert here["pipe"].class_names
