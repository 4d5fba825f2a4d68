"""Checks of verifiers: correct ones pass, and each fault is named."""

import jax.numpy as jnp
import pytest

from jaxspec.errors import ConfigError
from jaxspec.speculative.verify import (
    Block,
    Coupled,
    CoupledRelaxed,
    GreedySet,
    KSeq,
    Lantern,
    Rejection,
    Typical,
    neighbor_table,
)
from jaxspec.testing import check_verifier
from tests.testing.broken_verifiers import (
    AcceptsAll,
    BrokenCoupled,
    BrokenRejection,
    NoClaims,
    NoSelection,
)
from tests.testing.sentences import sentences

NEIGHBORS = {"neighbors": neighbor_table(jnp.eye(3) * jnp.array([1.0, 2.0, 3.0]), 1)}
CORRECT = {
    "coupled": (Coupled(), None),
    "rejection": (Rejection(), None),
    "rejection, independent": (Rejection("with_replacement"), None),
    "rejection, given": (Rejection("top"), None),
    "block": (Block(), None),
    "kseq": (KSeq(), None),
    "greedy set": (GreedySet(), None),
    "typical": (Typical(), None),
    "lantern": (Lantern(k=1, delta=0.2), NEIGHBORS),
    "coupled, relaxed": (CoupledRelaxed(k=1, budget=0.2), NEIGHBORS),
}


@pytest.mark.variants(1)
@pytest.mark.parametrize(("verifier", "params"), CORRECT.values(), ids=CORRECT)
def test_a_correct_verifier_passes(verifier, params):
    check_verifier(verifier, params)


STATIC = {
    "a class": (Coupled, "Coupled is a class; pass an instance"),
    "no claims": (NoClaims(), "has no bool `lossless`"),
    "no selection": (NoSelection(), "selection is 'best'; choose one of coupled"),
}
VERDICTS = {
    "raises": "verify raises ValueError",
    "a pair": "verify returns a tuple",
    "floats": r"Verdict.accepted is float32\[\d+\]; return integer",
    "short paths": r"Verdict.path is int32\[\d+, 2\]",
    "counts nodes": "Verdict.accepted has 3; it counts accepted drafted tokens, 0 to 2",
    "no root": "begins with another node than the root",
    "siblings": "has node 2 after node 1, which is not its parent",
    "no repetition": "repeat the last accepted node",
    "unknown token": "tokens outside of 0 to 2",
    "negative margin": "margin is negative",
    "no margin": "margin is infinite, but the verifier is token_exact",
    "NaN": "margin is NaN",
    "of the batch": "changes with the other sequences",
    "invalid nodes": "accepts nodes that are not `draft.valid`",
    "likeliest": "other tokens than argmax",
    "warm": "other tokens than the likeliest",
    "filtered": "score of -inf",
}
CLAIMS = {
    "flat": (BrokenRejection(fault="flat"), "outcome is biased"),
    "no residual": (BrokenRejection(fault="no residual"), "outcome is biased"),
    "finite margin": (BrokenRejection(fault="finite margin"), "not token_exact"),
    "other verify": (BrokenRejection(fault="other verify"), "verify is biased"),
    "any selection": (
        BrokenRejection(fault="any selection"),
        "for a draft with selection 'top'",
    ),
    "pruned": (BrokenRejection(fault="pruned"), "refuse drafts with pruned_by='token'"),
    "accepts all": (AcceptsAll(), "lossless is True, but AcceptsAll.verify is biased"),
}


@pytest.mark.parametrize(("verifier", "words"), STATIC.values(), ids=STATIC)
def test_objects_that_are_no_verifiers_are_named(verifier, words):
    assert words in sentences(check_verifier, verifier)[0]


@pytest.mark.variants(8)
@pytest.mark.parametrize(("fault", "words"), VERDICTS.items(), ids=VERDICTS)
def test_wrong_verdicts_are_named(fault, words, monkeypatch):
    monkeypatch.setattr(  # shown by the next test
        "jaxspec.testing.verifier_checks.VerifierChecks.lossless", lambda self: []
    )
    with pytest.raises(ConfigError, match=words):
        check_verifier(BrokenCoupled(fault=fault))


@pytest.mark.variants(2)
@pytest.mark.parametrize(("verifier", "words"), CLAIMS.values(), ids=CLAIMS)
def test_false_claims_are_named(verifier, words):
    found = sentences(check_verifier, verifier)
    assert any(words in sentence for sentence in found), found
