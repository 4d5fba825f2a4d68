"""Verifiers by name: parsing, formatting, and parameters from a bundle."""

from dataclasses import replace

import chex
import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.verifiers import (
    VERIFIERS,
    parse_verifier,
    verifier_params,
    verifier_spec,
)
from jaxspec.speculative.verify import (
    Annealed,
    Block,
    Coupled,
    CoupledRelaxed,
    Entropic,
    GreedySet,
    Grouped,
    Judge,
    KSeq,
    Lantern,
    Rejection,
    Skipped,
    Typical,
)
from jaxspec.speculative.verify.neighbors import neighbor_table

NAMED = {
    "coupled": Coupled(),
    "rejection": Rejection(),
    "block": Block(),
    "kseq": KSeq(),
    "greedy-set": GreedySet(),
    "lantern:k=10,lam=2.0": Lantern(10, lam=2.0),
    "lantern:k=5,delta=0.1,residual=optimal": Lantern(5, delta=0.1, residual="optimal"),
    "coupled-relaxed:k=10,budget=0.1,radius=0.5": CoupledRelaxed(10, 0.1, radius=0.5),
    "grouped": Grouped(),
    "annealed": Annealed(),
    "entropic:floor=0.2": Entropic(floor=0.2),
    "typical": Typical(),
    "skipped:share=0.5": Skipped(0.5),
}


@pytest.mark.parametrize("words", NAMED)
def test_names_and_verifiers_convert_both_ways(words):
    assert parse_verifier(words) == NAMED[words]
    assert verifier_spec(NAMED[words]) == words


def test_every_verifier_has_a_case_and_declares_whether_it_is_lossless():
    assert {words.partition(":")[0] for words in NAMED} == set(VERIFIERS)
    lossless = {words for words, verifier in NAMED.items() if verifier.lossless}
    assert lossless == {"coupled", "rejection", "block", "kseq", "greedy-set"}


def test_settings_at_their_default_are_omitted():
    assert verifier_spec(parse_verifier("lantern:k=3,lam=2,residual=published")) == (
        "lantern:k=3,lam=2.0"
    )
    assert parse_verifier("lantern:lam=2,k=3,") == parse_verifier("lantern:k=3,lam=2")


def test_verifiers_without_a_name_are_written_as_their_class():
    words = verifier_spec(Judge(lambda features: features[..., 0]))
    assert words.startswith("Judge") and "Judge" not in VERIFIERS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oak", "unknown verifier 'oak'; choose coupled, rejection"),
        ("", "unknown verifier ''"),
        ("Lantern:k=3", "unknown verifier 'Lantern'"),
        ("coupled:k=3", "coupled has no setting 'k=3'; it takes none"),
        ("lantern:wings=2", "lantern has no setting 'wings=2'; it takes k=..., delta"),
        ("lantern:k", "lantern has no setting 'k'"),
        ("lantern:k=two,lam=2", "lantern: k='two' is no number"),
        ("lantern:k=3,lam=x", "lantern: lam='x' is no number"),
        ("lantern:k=3,lam=2,residual=some", "residual='some'; use published"),
        ("lantern", "lantern needs lantern:k=..."),
        ("lantern:lam=2", "lantern needs lantern:k=..."),
        ("lantern:k=0,lam=2", "k=0"),
    ],
)
def test_invalid_names_are_a_one_line_error(text, words):
    with pytest.raises(ConfigError) as error:
        parse_verifier(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_stored_neighbors_are_used_if_there_are_enough():
    bundle = load_bundle("fruits64")
    tokenizer = bundle.tokenizer
    stored = tokenizer.neighbors
    assert stored is not None
    for verifier in (Lantern(stored.most, lam=2.0), CoupledRelaxed(5, 0.1)):
        assert verifier_params(verifier, bundle) == {"neighbors": stored}

    built = neighbor_table(tokenizer.params["codebook"], stored.most + 1)
    wider = verifier_params(Lantern(stored.most + 1, lam=2.0), bundle)
    chex.assert_trees_all_equal(wider, {"neighbors": built})
    without = replace(bundle, image_tokenizer=replace(tokenizer, neighbors=None))
    chex.assert_trees_all_equal(
        verifier_params(Lantern(stored.most + 1, lam=2.0), without), wider
    )
    # The stored table is what would be built.
    np.testing.assert_allclose(
        stored.distances, built.distances[:, : stored.most + 1], rtol=1e-5
    )


def test_skipped_verification_has_the_arrays_of_its_rule():
    bundle, rule = load_bundle("fruits64"), Lantern(5, lam=2.0)
    chex.assert_trees_all_equal(
        verifier_params(Skipped(rule=rule), bundle), verifier_params(rule, bundle)
    )
    assert verifier_params(Skipped(), bundle) is None


def test_verifiers_without_arrays_get_none():
    bundle = load_bundle("fruits64")
    for verifier in NAMED.values():
        given = verifier_params(verifier, bundle)
        if isinstance(verifier, (Lantern, CoupledRelaxed)):
            assert set(given) == {"neighbors"}
        elif isinstance(verifier, Grouped):
            assert given["embedding"].shape[0] == bundle.prior.config.vocab_size
        else:
            assert given is None
