"""Comparison of verifiers: exact numbers, their errors, and the command."""

import json
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxspec.cli.main import main
from jaxspec.errors import ConfigError
from jaxspec.evaluate.relaxation import compare_verifiers
from jaxspec.evaluate.relaxation.drafts import coupled_pairs
from jaxspec.evaluate.relaxation.report import family
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import (
    Coupled,
    CoupledRelaxed,
    Judge,
    Lantern,
    Rejection,
    Verdict,
    Verifier,
)
from jaxspec.testing.drafts import Conditionals, all_drafts
from jaxspec.testing.enumeration import distortion
from tests.evaluate.toy_position import toy_position

TOYS = [toy_position(9, neighbors=5, seed=seed) for seed in (0, 1)]
CODEBOOK = TOYS[0].codebook
LOG_P = np.log([x.p for x in TOYS])
LOG_Q = np.log([x.q for x in TOYS])


def compare(*verifiers, **options):
    options = {"rounds": 2, "tree": Tree.chain(1), **options}
    return compare_verifiers(LOG_P, LOG_Q, CODEBOOK, verifiers, **options)


def relaxed_sets(p, k, budget):
    """Tokens of the relaxed set of each token, and its `k + 1` nearest tokens."""
    sets, nearest = [], []
    for x in range(len(p)):
        distance = np.linalg.norm(CODEBOOK - CODEBOOK[x], axis=1)
        order = [y for y in np.argsort(distance) if y != x]
        members, mass = [], 0.0
        for y in order[:k]:
            mass += p[y]
            if mass > budget(x):
                break
            members.append(y)
        sets.append(members)
        nearest.append(order[: k + 1])
    return sets, nearest


def lantern_by_hand(p, q, k, budget):
    """Acceptance and output of LANTERN for one sampled child, token by token."""
    sets, nearest = relaxed_sets(p, k, budget)
    output, acceptance = np.zeros(len(p)), 0.0
    for x in range(len(p)):
        accept = min(1.0, (p[x] + sum(p[y] for y in sets[x])) / q[x])
        rest = q.copy()
        if sets[x]:
            rest[nearest[x]] = 0.0
        residual = np.maximum(p - rest, 0.0)
        output[x] += q[x] * accept
        output += q[x] * (1 - accept) * residual / residual.sum()
        acceptance += q[x] * accept
    return acceptance, output


def coupled_relaxed_by_hand(p, q, k, budget):
    """Acceptance and output of `CoupledRelaxed` over pairs of sample and child."""
    sets, _ = relaxed_sets(p, k, budget)
    output, acceptance = np.zeros(len(p)), 0.0
    for (y, x), chance in np.ndenumerate(coupled_pairs(p, q)):
        accepted = y == x or y in sets[x]
        output[x if accepted else y] += chance
        acceptance += chance * accepted
    return acceptance, output


@pytest.mark.parametrize(
    ("verifier", "by_hand", "budget"),
    [
        (Lantern(4, delta=0.2), lantern_by_hand, lambda p, x: 0.2),
        (Lantern(4, lam=3.0), lantern_by_hand, lambda p, x: 2 * p[x]),
        (CoupledRelaxed(4, 0.3), coupled_relaxed_by_hand, lambda p, x: 0.3),
    ],
    ids=["static relaxation", "dynamic relaxation", "coupled relaxation"],
)
def test_numbers_equal_those_of_a_loop_over_all_drafts(verifier, by_hand, budget):
    means = np.zeros(3)
    for toy in TOYS:
        p = toy.p
        acceptance, output = by_hand(p, toy.q, 4, lambda x, p=p: budget(p, x))
        change = (p * np.log(p)).sum() - (output * np.log(output)).sum()
        means += np.array([acceptance, np.abs(output - p).sum() / 2, change]) / 2
    [row] = compare(verifier)
    actual = [row.acceptance, row.tv, row.entropy_change]
    np.testing.assert_allclose(actual, means, atol=1e-6)
    assert row.tv > 0.01 and row.tv_error == row.acceptance_error == 0
    assert 0 < row.w1 <= 2 * row.tv  # unit vectors are at most 2 apart


@pytest.mark.variants(2)
@pytest.mark.parametrize(
    "spec", ["rejection", "coupled", "block", "kseq", "greedy-set"]
)
def test_lossless_verifiers_do_not_distort(spec):
    lossless, control = compare(parse_verifier(spec), Lantern(4, lam=3.0))
    assert lossless.lossless and not control.lossless
    assert max(lossless.tv, lossless.w1, abs(lossless.entropy_change)) < 1e-6
    assert min(control.tv, control.w1, abs(control.entropy_change)) > 1e-3
    assert control.acceptance > lossless.acceptance


@pytest.mark.slow
@pytest.mark.parametrize(
    "verifier", [Rejection(), Lantern(4, delta=0.2), Lantern(4, lam=2.0)], ids=str
)
def test_two_children_equal_the_enumeration_of_the_testing_package(verifier):
    tree, toy = Tree.from_paths([(0,), (1,)]), TOYS[0]
    drafts = all_drafts(Conditionals.constant(toy.q, 1), tree, verifier.selection)
    target, params = Conditionals.constant(toy.p, 2), {"neighbors": toy.neighbors}
    # The enumeration continues with the target, so the distances are equal.
    expected = distortion(verifier, target, drafts, params)
    [row] = compare_verifiers(
        LOG_P[:1], LOG_Q[:1], CODEBOOK, [verifier], tree=tree, rounds=2
    )
    assert row.tv == pytest.approx(expected, abs=1e-6)
    assert row.tv_error == 0


@pytest.mark.slow
def test_a_chain_of_rejections_has_geometrically_many_tokens():
    [row] = compare(Rejection(), tree=Tree.chain(3), rounds=2000)
    overlap = [np.minimum(x.p, x.q).sum() for x in TOYS]
    expected = np.mean([sum(a**d for d in range(4)) for a in overlap])
    assert row.acceptance == pytest.approx(np.mean(overlap), abs=1e-9)
    assert abs(row.tokens_per_call - expected) < 5 * row.tokens_error < 0.2
    [more] = compare(Lantern(4, delta=0.3), tree=Tree.chain(3), rounds=2000)
    assert more.tokens_per_call > row.tokens_per_call + 5 * more.tokens_error


@dataclass(frozen=True)
class AcceptAll(Verifier):
    """Accepts the first child whatever it is, and claims to be lossless."""

    lossless = True
    selection = "without_replacement"

    def verify(self, log_p, draft, tree, noise, params=None, features=None):
        accepted = jnp.full(len(draft.tokens), tree.depth, jnp.int32)
        path = jnp.broadcast_to(jnp.arange(tree.size), draft.tokens.shape)
        margin = jnp.full(path.shape, jnp.inf)
        return Verdict(path, accepted, jnp.zeros_like(accepted), margin)


def test_a_verifier_without_outcomes_is_sampled_with_its_error():
    [row] = compare(AcceptAll(), rounds=4000)
    distance = np.mean([np.abs(x.p - x.q).sum() / 2 for x in TOYS])
    assert row.acceptance == 1 and row.tokens_per_call == 2
    assert row.tv == pytest.approx(distance, abs=row.tv_error)
    assert 0 < row.tv_error < 0.1 < row.tv  # the claim is refuted


def test_filtered_tokens_are_never_emitted():
    log_p = LOG_P.copy()
    log_p[:, ::2] = -np.inf
    rows = compare_verifiers(
        log_p,
        LOG_Q,
        CODEBOOK,
        [Rejection(), Coupled(), CoupledRelaxed(4, 0.5)],
        tree=Tree.chain(1),
        rounds=2,
    )
    assert rows[0].tv < 1e-6 and rows[1].tv < 1e-6 < rows[2].tv < 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"log_q": LOG_Q[:, :5]}, "do not fit"),
        ({"log_p": np.full((2, 9), -np.inf)}, "without a finite score"),
        ({"log_p": LOG_P[0]}, r"give \[B, V\]"),
        ({"verifiers": [Judge(lambda *a: None)]}, "hidden states"),
        ({"drafts": 12}, "power of 2"),
        ({"tree": Tree.root()}, "no drafted node"),
        ({"verifiers": [Lantern(50, lam=2.0)]}, "usable neighbors"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_impossible_comparisons_are_refused(change, words):
    arguments = {
        "log_p": LOG_P,
        "log_q": LOG_Q,
        "codebook": CODEBOOK,
        "verifiers": [Rejection()],
    }
    with pytest.raises(ConfigError, match=words):
        compare_verifiers(**{**arguments, **change})


# --- Command ---------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Files of distributions (probabilities, log-probabilities) and codebook."""
    arrays = {"p": np.exp(LOG_P), "q": LOG_Q, "codebook": CODEBOOK}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return {name: str(tmp_path / f"{name}.npy") for name in arrays}


def run(*words):
    options = ["--rounds", "8", "--tree", "chain-1", "--positions", "2"]
    return main(["eval", "relaxation", *options, *words])


def test_command_compares_the_distributions_of_files(files, tmp_path, capsys):
    stem, specs = str(tmp_path / "r"), ["rejection", "lantern:k=4,lam=3.0"]
    words = [w for name in ("codebook", "p", "q") for w in (f"--{name}", files[name])]
    assert run(*words, "--verifiers", *specs, "--out", stem) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    rows = compare(*map(parse_verifier, specs))
    for written, row in zip(report["rows"], rows, strict=True):
        assert written["acceptance"] == pytest.approx(row.acceptance)
        assert written["tv"] == pytest.approx(row.tv, abs=1e-9)
    assert report["command"].startswith("jaxspec eval relaxation --codebook")
    text = (tmp_path / "r.md").read_text()
    assert text.startswith(capsys.readouterr().out.rstrip())
    assert f"| `{specs[1]}` | LOSSY | {rows[1].acceptance:.3f} |" in text
    assert "Synthetic" not in text
    assert Image.open(tmp_path / "r.png").format == "PNG"


def test_a_codebook_alone_has_synthetic_distributions(files, tmp_path):
    stem = str(tmp_path / "r")
    words = ["--codebook", files["codebook"], "--verifiers", "coupled", "--out", stem]
    assert run(*words) == 0
    assert "**Synthetic distributions, made by no model**" in (
        (tmp_path / "r.md").read_text()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--p", "p.npy"], "--p and --q belong together"),
        (["--p", "p.npy", "--q", "q.npy"], "need the --codebook"),
        (["--codebook", "missing.npy"], "cannot read 'missing.npy'"),
        (["--tree", "beam-8"], "choose a static tree"),
        (["--verifiers", "coupled", "coupled"], "name each verifier once"),
        (["--drafts", "3"], "--drafts 3 must be a power of 2"),
    ],
)
def test_impossible_options_are_a_one_line_error(words, message, tmp_path, capsys):
    assert run(*words, "--out", str(tmp_path / "r")) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_rows_that_sum_to_something_else_are_refused(files, tmp_path, capsys):
    np.save(files["p"], np.ones((2, 9)))
    words = [w for name in ("codebook", "p", "q") for w in (f"--{name}", files[name])]
    assert run(*words, "--out", str(tmp_path / "r")) == 2
    assert "rows do not sum to 1" in capsys.readouterr().err


def test_verifiers_that_differ_in_an_amount_are_one_curve():
    assert family("lantern:k=10,delta=0.1") == family("lantern:k=10,delta=0.2")
    assert family("lantern:k=10,delta=0.1") != family("lantern:k=10,lam=2")
    assert family("lantern:k=10,lam=2") != family("lantern:k=5,lam=2")
    assert family("coupled") == "coupled"
