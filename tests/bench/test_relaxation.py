"""Study of relaxation: its settings, sweep and report."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from docs.studies.command import run_study
from docs.studies.relaxation import STUDY
from docs.studies.relaxation.equal_acceptance import equal_acceptance, lantern_at
from docs.studies.relaxation.positions import model_positions, toy_positions
from docs.studies.relaxation.report import relaxation_markdown, relaxation_plot
from docs.studies.relaxation.sweep import cells, measure_setting
from jaxspec.evaluate.plot import Line, Panel, plot_panels, ticks
from jaxspec.io.images import png_bytes
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.verifiers import parse_verifier, verifier_spec
from jaxspec.speculative.verify import Coupled, CoupledRelaxed, Lantern, Rejection

TOY = toy_positions(1, near=True, vocab_size=10, max_neighbors=6)[0]


# --- Settings --------------------------------------------------------------------


def test_near_drafters_overlap_more_with_their_target():
    near, far = (
        toy_positions(4, near=x, vocab_size=20, max_neighbors=5) for x in (True, False)
    )
    overlap = [np.mean([np.minimum(x.p, x.q).sum() for x in y]) for y in (near, far)]
    assert overlap[0] > overlap[1]
    for x in near:
        np.testing.assert_allclose(np.linalg.norm(x.codebook, axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_positions_of_the_embedded_model():
    positions = model_positions(load_bundle("fruits64"), 2, seed=1)
    for x in positions:
        assert x.p.shape == x.q.shape == (1024,)
        assert x.p.sum() == pytest.approx(1) and x.q.sum() == pytest.approx(1)
    first, second = positions
    mixed = np.minimum(first.p, second.q).sum() + np.minimum(second.p, first.q).sum()
    # Target and drafter have the same prefix.
    assert sum(np.minimum(x.p, x.q).sum() for x in positions) > 1.2 * mixed


def test_every_measured_verifier_has_a_name():
    measurements = cells(toy_positions(1, near=False))
    names = {(verifier_spec(verifier), drafts) for _, verifier, drafts in measurements}
    assert len(names) == len(measurements) > 80
    for _, verifier, _ in measurements:
        assert parse_verifier(verifier_spec(verifier)) == verifier


# --- Reports ---------------------------------------------------------------------


def tiny_result():
    """Report of a short sweep with one child, as `measure_relaxation` returns it."""
    measurements = [("lossless", Rejection(), "independent")]
    kinds = "independent", "coupled"
    measurements += [("lossless", Coupled(), kind) for kind in kinds]
    for radius in (0.6, 1.2):
        verifier = CoupledRelaxed(6, 1.0, radius=radius)
        measurements += [("coupled-relaxed, radius", verifier, kind) for kind in kinds]
    for lam in (1.5, 20.0):
        for residual in ("published", "optimal"):
            verifier = Lantern(4, lam=lam, residual=residual)
            curve = f"LANTERN++, {residual}, k=10"
            measurements.append((curve, verifier, "independent"))
    updates = []
    rows = measure_setting(
        "toy", [TOY], 1, measurements, progress=lambda: updates.append(1)
    )
    assert len(rows) == len(measurements) == len(updates)
    setting = {"positions": 1, "vocab_size": 10, "dimensions": 4, "overlap": 0.5}
    return {
        "checkpoint": "none",
        "command": "python -m docs.studies.relaxation --out here",
        "device": "cpu",
        "versions": {"jax": "0"},
        "settings": {"toy": setting},
        "drafts": 8,
        "samples": 8,
        "rows": rows,
        "equal_acceptance": equal_acceptance(rows),
    }


def test_report_has_every_row_and_the_plot_is_an_image():
    result = tiny_result()
    text = relaxation_markdown(result)
    assert result["command"] in text
    tables = text.split("## All measurements")
    for row in result["rows"]:
        name = f"`{row['verifier'].removesuffix(',residual=optimal')}`"
        lines = [x for x in tables[1].splitlines() if x.startswith(f"| {name} |")]
        assert len(lines) == 1
        numbers = [row["acceptance"], row["tv"], row["w1"]]
        assert " | ".join(f"{x:.3f}" for x in numbers) in lines[0]
    compared = [row["verifier"] for row in result["equal_acceptance"]]
    assert "coupled" in compared and "rejection" not in compared
    for name in compared:
        assert f"| `{name}` |" in tables[0]
    for table in text.split("\n\n"):  # equal numbers of cells in all lines
        counts = {line.count("|") for line in table.splitlines() if line[:1] == "|"}
        assert len(counts) <= 1

    image = Image.open(io.BytesIO(png_bytes(relaxation_plot(result))))
    assert image.format == "PNG" and image.mode == "RGB"
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 50


def test_command_writes_numbers_tables_and_plot(tmp_path, monkeypatch, capsys):
    result, calls = tiny_result(), []
    del result["command"]

    def measure(bundle, **options):
        calls.append((bundle.name, options))
        return result

    monkeypatch.setattr("docs.studies.relaxation.sweep.measure_relaxation", measure)
    stem = str(tmp_path / "r")
    defaults = {"toys": 8, "images": 16, "drafts": 4096, "samples": 1 << 19, "seed": 0}
    assert run_study(STUDY, ["--out", stem]) == 0
    written = json.loads((tmp_path / "r.json").read_text())
    options = " ".join(f"--{name} {value}" for name, value in defaults.items())
    command = f"python -m docs.studies.relaxation {options} --out {stem}"
    assert written == json.loads(json.dumps({"command": command, **result}))
    assert list(written)[0] == "command"
    text = (tmp_path / "r.md").read_text()
    assert f"`{command}`" in text and text.endswith("](r.png)\n")
    assert text.startswith(capsys.readouterr().out.rstrip())
    assert Image.open(tmp_path / "r.png").format == "PNG"
    assert len(list(tmp_path.iterdir())) == 3

    options = ["--images", "2", "--drafts", "8", "--seed", "3", "--out", stem]
    assert run_study(STUDY, options) == 0
    changed = {**defaults, "images": 2, "drafts": 8, "seed": 3}
    assert calls == [("fruits64", defaults), ("fruits64", changed)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--toys", "0"], "--toys 0 must be at least 1"),
        (["--drafts", "12"], "--drafts 12 must be a power of 2"),
        (["--seed", "-1"], "--seed -1 must be at least 0"),
    ],
)
def test_impossible_sweeps_are_a_one_line_error(options, words, tmp_path, capsys):
    assert run_study(STUDY, [*options, "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == f"jaxspec: {words}\n"


def lantern_row(curve, verifier, acceptance, tv):
    return {
        "curve": curve,
        "verifier": verifier,
        "acceptance": acceptance,
        "tv": tv,
        "w1": None,
    }


def test_lantern_at_an_acceptance_is_the_best_curve_there():
    rows = [
        lantern_row("lossless", "rejection", 0.5, 0.0),
        lantern_row("LANTERN, published, k=5", "a", 0.9, 0.4),
        lantern_row("LANTERN++, published, k=5", "b", 0.6, 0.2),
        lantern_row("LANTERN++, published, k=5", "c", 0.8, 0.25),
        lantern_row("LANTERN++, optimal, k=5", "d", 0.8, 0.01),
    ]
    assert lantern_at(rows, 0.4, "published")["verifier"] == "rejection"
    early = lantern_at(rows, 0.55, "published")  # between `rejection` and a
    assert (early["verifier"], early["tv"]) == ("a", pytest.approx(0.05))
    late = lantern_at(rows, 0.75, "published")
    assert (late["verifier"], late["tv"]) == ("c", pytest.approx(0.2375))
    assert late["w1"] is None
    assert lantern_at(rows, 0.85, "published")["verifier"] == "a"
    assert lantern_at(rows, 0.95, "published") is None
    assert lantern_at(rows, 0.85, "optimal") is None


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.31, 0.98), (-2.0, 340.0), (5.0, 5.0)]
)
def test_ticks_are_few_and_cover_the_range(low, high):
    values = ticks(low, high)
    assert 2 <= len(values) <= 8
    assert values[0] <= low + 1e-9 and values[-1] >= high - 1e-9
    np.testing.assert_allclose(np.diff(values), values[1] - values[0])


def test_plot_shows_lines_dashes_and_panels():
    line = Line("a", (0.1, 0.5, np.nan), (0.2, 0.4, 0.3))
    empty = plot_panels([Panel("t", [Line("a", (), ())])], "x", "y")
    plain = plot_panels([Panel("t", [line])], "x", "y")
    dashes = Line("a", line.x, line.y, dashed=True)
    dashed = plot_panels([Panel("t", [dashes])], "x", "y")
    assert empty.shape == plain.shape == dashed.shape and plain.dtype == np.uint8
    assert (plain != empty).any() and (plain != dashed).any()
    three = plot_panels([Panel("t", [line])] * 3, "x", "y")
    assert three.shape[1] == 2 * plain.shape[1] and three.shape[0] > plain.shape[0]
    assert png_bytes(plain).startswith(b"\x89PNG")
