"""The output law of relaxed rules at one position: exact where it says so."""

import io
import json
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxspec.bench.plot import Line, Panel, plot_panels, ticks
from jaxspec.bench.relaxation import relaxation_markdown, relaxation_plot
from jaxspec.bench.relaxation.drafts import (
    Drafts,
    independent_drafts,
    coupled_drafts,
    coupled_pairs,
)
from jaxspec.bench.relaxation.equal_acceptance import equal_acceptance, lantern_at
from jaxspec.bench.relaxation.outcomes import (
    independent_outcome,
    coupled_outcome,
    total_variation,
    wasserstein,
)
from jaxspec.bench.relaxation.positions import model_positions, toy_positions
from jaxspec.bench.relaxation.sweep import cells, measure_setting
from jaxspec.bundle import load_bundle
from jaxspec.cli import main
from jaxspec.images import png_bytes
from jaxspec.rules import parse_verifier, verifier_spec
from jaxspec.spec.draft import Draft
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, CoupledRelaxed, Lantern, Rejection
from tests.spec.noises import coupled_noise

TOY = toy_positions(1, near=True, codes=10, most=6)[0]
FORK = Tree.from_paths([(0,), (1,), (2,)])


def all_triples(q):
    """Every draft of three children, with its chance."""
    tokens = np.array(list(permutations(range(len(q)), 3)), np.int32)
    chance, left = np.ones(len(tokens)), np.ones(len(tokens))
    for column in tokens.T:
        chance, left = chance * q[column] / left, left - q[column]
    assert chance.sum() == pytest.approx(1)
    return Drafts(tokens, chance)


def distortion(outcome, position=TOY):
    return total_variation(outcome.output, position.p)


# --- Laws ------------------------------------------------------------------------


@pytest.mark.parametrize("verifier", [Rejection(), Coupled()], ids=str)
def test_lossless_rules_distort_nothing(verifier):
    for drafts in (independent_drafts(TOY.q, 1, 0), all_triples(TOY.q)):
        outcome = independent_outcome(verifier, TOY, drafts)
        assert distortion(outcome) < 1e-6
        assert 0 < outcome.acceptance < 1
    # The control: a relaxed rule does, over the same drafts.
    relaxed = Lantern(4, lam=3.0)
    assert distortion(independent_outcome(relaxed, TOY, all_triples(TOY.q))) > 0.01


def test_coupled_children_are_followed_without_loss():
    one = coupled_outcome(Coupled(), TOY, coupled_drafts(TOY.p, TOY.q, 1, 0))
    three = coupled_outcome(Coupled(), TOY, coupled_drafts(TOY.p, TOY.q, 3, 40_000))
    assert distortion(one) < 1e-12
    assert distortion(three) < 0.02
    assert one.acceptance < three.acceptance and one.shift == three.shift == 0


@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_joint_law_of_two_samples_under_shared_noise(zeros):
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(7), size=2) * (rng.random((2, 7)) >= zeros)
    p, q = p / p.sum(), q / q.sum()
    pairs = coupled_pairs(p, q)
    np.testing.assert_allclose(pairs.sum(axis=1), p, atol=1e-12)
    np.testing.assert_allclose(pairs.sum(axis=0), q, atol=1e-12)
    drawn = coupled_drafts(p, q, 2, 200_000)
    counts = np.zeros((7, 7))
    np.add.at(counts, (drawn.sample, drawn.tokens[:, 0]), 1)
    mean = 200_000 * pairs
    assert (np.abs(counts - mean) / np.sqrt(mean + 1)).max() < 5
    assert np.trace(pairs) > (p * q).sum()  # the control: not independent


def test_drawn_drafts_have_the_law_of_the_listed_ones():
    drawn, listed = independent_drafts(TOY.q, 3, 2**14), all_triples(TOY.q)
    chances = {tuple(t): c for t, c in zip(listed.tokens, listed.chance, strict=True)}
    counts = dict.fromkeys(chances, 0.0)
    for tokens in drawn.tokens:
        counts[tuple(tokens)] += 1 / 2**14
    assert sum(abs(counts[t] - chances[t]) for t in chances) / 2 < 0.02


def test_sweeping_amounts_are_those_of_the_rule():
    """Amounts are traced, so that a sweep compiles once: against the plain rule."""
    drafts = all_triples(TOY.q)
    rows = len(drafts.tokens)
    for verifier in (
        Lantern(4, delta=0.2),
        Lantern(4, lam=2.5, residual="optimal"),
        CoupledRelaxed(4, 0.3, radius=0.9),
    ):
        with jax.enable_x64(True):
            draft = Draft(
                jnp.pad(jnp.asarray(drafts.tokens), ((0, 0), (1, 0))),
                jnp.ones((rows, 4), bool),
                log_q=jnp.broadcast_to(jnp.log(jnp.asarray(TOY.q)), (rows, 1, 10)),
                selection="without_replacement",
            )
            log_p = jnp.broadcast_to(jnp.log(jnp.asarray(TOY.p)), (rows, 4, 10))
            law = verifier.outcome(
                log_p, draft, FORK, params={"neighbors": TOY.neighbors}
            )
            stop, final = np.asarray(law.stop), np.asarray(law.final)
        wanted = (drafts.chance * stop[:, 0]) @ final[:, 0]
        np.add.at(wanted, drafts.tokens, drafts.chance[:, None] * stop[:, 1:])
        outcome = independent_outcome(verifier, TOY, drafts)
        np.testing.assert_allclose(outcome.output, wanted, atol=1e-6)
        assert outcome.acceptance == pytest.approx(1 - drafts.chance @ stop[:, 0])


@pytest.mark.parametrize(
    "verifier",
    [Coupled(), CoupledRelaxed(4, 0.3, radius=0.9), CoupledRelaxed(6, lam=3.0)],
    ids=str,
)
def test_coupled_outcome_is_that_of_the_verdicts(verifier):
    rows = 2000
    noise = np.random.default_rng(0).gumbel(size=(rows, 2, 10)).astype(np.float32)
    log_p = np.broadcast_to(np.log(TOY.p).astype(np.float32), (rows, 4, 10))
    sample = (log_p[:, 0] + noise[:, 0]).argmax(-1)
    best = np.argsort(-(np.log(TOY.q) + noise[:, 0]), axis=1)[:, :3]
    draft = Draft(
        jnp.pad(jnp.asarray(best, jnp.int32), ((0, 0), (1, 0))),
        jnp.ones((rows, 4), bool),
        selection="coupled",
    )
    params = {"neighbors": TOY.neighbors}
    noises = coupled_noise(noise, FORK.size)
    verdict = verifier.verify(jnp.asarray(log_p), draft, FORK, noises, params)
    emitted = np.asarray(verdict.emitted(draft)[0][:, 0])
    outcome = coupled_outcome(
        verifier, TOY, Drafts(best, np.full(rows, 1 / rows), sample)
    )
    counts = np.bincount(emitted, minlength=10)
    np.testing.assert_allclose(outcome.output * rows, counts, atol=1e-6)
    assert outcome.acceptance == pytest.approx(float(verdict.accepted.mean()))
    moved = np.linalg.norm(TOY.codebook[emitted] - TOY.codebook[sample], axis=1)
    assert outcome.shift == pytest.approx(moved.mean(), abs=1e-6)


def test_our_rule_accepts_and_distorts_more_with_its_budget():
    listed = independent_drafts(TOY.q, 1, 0), coupled_drafts(TOY.p, TOY.q, 1, 0)
    for drafts, outcome_of in zip(
        (*listed, all_triples(TOY.q)),
        (independent_outcome, coupled_outcome, independent_outcome),
        strict=True,
    ):
        budgets = (0.0, 0.1, 0.3, 0.9)
        found = [outcome_of(CoupledRelaxed(6, b), TOY, drafts) for b in budgets]
        accepted = [x.acceptance for x in found]
        assert distortion(found[0]) < 1e-6 and found[0].shift == 0
        assert (np.diff(accepted) > 0).all()
        for x in found:
            w1 = wasserstein(x.output, TOY.p, TOY.codebook)
            assert w1 <= x.shift + 1e-6  # what it moves bounds how far it moves the law
            assert w1 <= 2 * distortion(x) + 1e-9
        assert distortion(found[-1]) > 0.01


def test_wasserstein_on_a_line_is_the_area_between_the_sums():
    rng = np.random.default_rng(0)
    place = np.sort(rng.normal(size=9))
    for _ in range(3):
        a, b = rng.dirichlet(np.ones(9), size=2)
        area = np.abs(np.cumsum(a - b))[:-1] @ np.diff(place)
        assert wasserstein(a, b, place[:, None]) == pytest.approx(area, abs=1e-7)
    tiny = np.append(np.eye(9)[0, :8] * 1e-9, -1e-9)
    assert wasserstein(a + tiny, a, place[:, None]) < 1e-6
    assert wasserstein(a, a, place[:, None]) == 0


# --- Settings --------------------------------------------------------------------


def test_toys_are_near_or_far():
    near, far = (toy_positions(4, near=x, codes=20, most=5) for x in (True, False))
    overlap = [np.mean([np.minimum(x.p, x.q).sum() for x in y]) for y in (near, far)]
    assert overlap[0] > overlap[1]
    for x in near:
        np.testing.assert_allclose(np.linalg.norm(x.codebook, axis=1), 1, atol=1e-6)


def test_positions_of_the_embedded_model():
    positions = model_positions(load_bundle(), 2, seed=1)
    for x in positions:
        assert x.p.shape == x.q.shape == (1024,)
        assert x.p.sum() == pytest.approx(1) and x.q.sum() == pytest.approx(1)
    first, second = positions
    mixed = np.minimum(first.p, second.q).sum() + np.minimum(second.p, first.q).sum()
    # The drafter was option_values after the same prefix.
    assert sum(np.minimum(x.p, x.q).sum() for x in positions) > 1.2 * mixed


def test_every_measured_rule_has_a_name():
    todo = cells(toy_positions(1, near=False))
    assert (
        len({(verifier_spec(verifier), how) for _, verifier, how in todo})
        == len(todo)
        > 80
    )
    for _, verifier, _ in todo:
        assert parse_verifier(verifier_spec(verifier)) == verifier


# --- Reports ---------------------------------------------------------------------


def tiny_result():
    """A short sweep, one child, as `measure_relaxation` would return it."""
    todo = [("lossless", Rejection(), "independent")]
    todo += [("lossless", Coupled(), how) for how in ("independent", "coupled")]
    for radius in (0.6, 1.2):
        verifier = CoupledRelaxed(6, 1.0, radius=radius)
        todo += [("ours, radius", verifier, how) for how in ("independent", "coupled")]
    for lam in (1.5, 20.0):
        for residual in ("published", "optimal"):
            verifier = Lantern(4, lam=lam, residual=residual)
            todo.append((f"LANTERN++, {residual}, k=10", verifier, "independent"))
    seen = []
    rows = measure_setting("toy", [TOY], 1, todo, progress=lambda: seen.append(1))
    assert len(rows) == len(todo) == len(seen)
    return {
        "checkpoint": "none",
        "command": "jaxspec bench relaxation --out here",
        "device": "cpu",
        "versions": {"jax": "0"},
        "settings": {
            "toy": {"positions": 1, "codes": 10, "dimensions": 4, "overlap": 0.5}
        },
        "drafts": 8,
        "samples": 8,
        "rows": rows,
        "equal_acceptance": equal_acceptance(rows),
    }


def test_report_holds_every_row_and_the_plot_is_a_image():
    result = tiny_result()
    text = relaxation_markdown(result, "here.png")
    assert "](here.png)" in text and "](" not in relaxation_markdown(result)
    assert result["command"] in text
    tables = text.split("## Everything measured")
    for row in result["rows"]:
        words = f"`{row['verifier'].removesuffix(',residual=optimal')}`"
        lines = [x for x in tables[1].splitlines() if x.startswith(f"| {words} |")]
        assert len(lines) == 1
        numbers = [row["acceptance"], row["tv"], row["w1"]]
        assert " | ".join(f"{x:.3f}" for x in numbers) in lines[0]
    compared = [row["verifier"] for row in result["equal_acceptance"]]
    assert "coupled" in compared and "rejection" not in compared
    for words in compared:
        assert f"| `{words}` |" in tables[0]
    for table in text.split("\n\n"):  # as many cells in each line
        cuts = {line.count("|") for line in table.splitlines() if line[:1] == "|"}
        assert len(cuts) <= 1

    image = Image.open(io.BytesIO(relaxation_plot(result)))
    assert image.format == "PNG" and image.mode == "RGB"
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 50


def test_command_writes_numbers_tables_and_plot(tmp_path, monkeypatch, capsys):
    result, option_values = tiny_result(), []
    del result["command"]

    def measured(bundle, **options):
        option_values.append((bundle.name, options))
        return result

    monkeypatch.setattr("jaxspec.bench.relaxation.measure_relaxation", measured)
    stem = str(tmp_path / "r")
    assert main(["bench", "relaxation", "--out", stem]) == 0
    written = json.loads((tmp_path / "r.json").read_text())
    command = f"jaxspec bench relaxation --out {stem}"
    assert written == json.loads(json.dumps({"command": command, **result}))
    assert list(written)[0] == "command"
    text = (tmp_path / "r.md").read_text()
    assert f"`{command}`" in text and "](r.png)" in text
    assert capsys.readouterr().out == text + "\n"
    assert Image.open(tmp_path / "r.png").format == "PNG"
    assert len(list(tmp_path.iterdir())) == 3

    # What was option_values is measured, and told where it is not the default.
    few = ["--images", "2", "--drafts", "8", "--seed", "3", "--out", stem]
    assert main(["bench", "relaxation", *few]) == 0
    told = json.loads((tmp_path / "r.json").read_text())["command"]
    assert told == " ".join(["jaxspec bench relaxation", *few])
    plain = {"toys": 8, "images": 16, "drafts": 4096, "samples": 1 << 19, "seed": 0}
    changed = {**plain, "images": 2, "drafts": 8, "seed": 3}
    assert option_values == [("fruits64", plain), ("fruits64", changed)]


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
    early = lantern_at(rows, 0.55, "published")  # on the method from `rejection` to a
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
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9
    np.testing.assert_allclose(np.diff(found), found[1] - found[0])


def test_plot_draws_what_it_is_given():
    line = Line("a", (0.1, 0.5, np.nan), (0.2, 0.4, 0.3))
    empty = plot_panels([Panel("t", [Line("a", (), ())])], "x", "y")
    plain = plot_panels([Panel("t", [line])], "x", "y")
    dashes = Line("a", line.x, line.y, dashed=True)
    broken = plot_panels([Panel("t", [dashes])], "x", "y")
    assert empty.shape == plain.shape == broken.shape and plain.dtype == np.uint8
    assert (plain != empty).any() and (plain != broken).any()
    three = plot_panels([Panel("t", [line])] * 3, "x", "y")
    assert three.shape[1] == 2 * plain.shape[1] and three.shape[0] > plain.shape[0]
    assert png_bytes(plain).startswith(b"\x89PNG")
