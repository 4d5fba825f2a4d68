"""Verifier of a generation, in the table and in the JSON of its report."""

import json

import numpy as np
import pytest

from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.generation import GenerationResult
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.report import generation_report, generation_table, json_bytes
from jaxspec.pipeline.timing import Timing
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.speculative.trees.tree import Tree

LOSSY = ["lantern:k=5,lam=2.0", "coupled-relaxed:k=5,budget=0.1", "grouped", "typical"]


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("fruits64")


def run(tokens, calls, runs=3):
    return GenerationResult(
        tokens=np.array([tokens]),
        calls=np.array([calls]),
        accepted=np.array([[1, 1, 0]]),
        hits=np.array([[[1], [0]]]),
        proposed=np.array([4]),
        rescored=0,
        timing=Timing.of([calls / 2] * runs),
        compile_seconds=1.0,
    )


def report_of(bundle, words, *, same, tree=None):
    prompts = Prompts.from_classes([0])
    config = GenerationConfig(verifier=parse_verifier(words))
    fast, plain = run([1, 2, 3 if same else 4, 5], 2), run([1, 2, 3, 5], 4)
    return generation_report(
        bundle, prompts, config, tree or Tree.chain(2), fast, plain
    )


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("words", LOSSY)
def test_lossy_verifiers_are_labeled_lossy(bundle, words, same):
    report = report_of(bundle, words, same=same)
    read = json.loads(json_bytes(report))
    assert read == report
    assert read["verifier"] == words
    assert read["lossless"] is False and read["promises_identity"] is False
    table = generation_table(read)
    assert f"verifier {words} (LOSSY)" in table and "(lossless)" not in table
    # A lossy verifier is labeled even where these images happen to be equal.
    assert ("NO, 1 tokens differ (the verifier is LOSSY)" in table) == (not same)


def test_lossless_verifiers_are_not_labeled_lossy(bundle):
    coupled = report_of(bundle, "coupled", same=True)
    assert coupled["lossless"] is True and coupled["promises_identity"] is True
    rejection = report_of(bundle, "rejection", same=False)
    assert rejection["lossless"] is True and rejection["promises_identity"] is False
    for report in (coupled, rejection):
        table = generation_table(report)
        assert (
            f"verifier {report['verifier']} (lossless)" in table
            and "LOSSY" not in table
        )
    assert "this verifier keeps the distribution, not the tokens" in table


def test_numbers_are_of_the_two_runs(bundle):
    report = report_of(bundle, "coupled", same=False)
    assert report["tokens"] == 4 and report["tokens_per_call"] == 2
    assert report["target_calls"] == 2 and report["baseline_target_calls"] == 4
    assert report["speedup"] == 2 and report["different_tokens"] == 1
    assert report["identical_to_autoregressive"] is False
    table = generation_table(report)
    assert "speedup     2.00x" in table and "NO, 1 tokens differ" in table


def test_the_report_of_plain_decoding_has_no_verifier(bundle):
    report = report_of(bundle, "coupled", same=True, tree=Tree.root())
    assert report["drafter"] == "none"
    table = generation_table(report)
    assert "verifier" not in table and "speculative" not in table and "plain" in table
