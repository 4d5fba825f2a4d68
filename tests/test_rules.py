"""Rules by name: what is read, what is said, what a bundle gives them."""

from dataclasses import replace

import chex
import numpy as np
import pytest

from jaxspec.bundle import load_bundle
from jaxspec.errors import ConfigError
from jaxspec.rules import RULES, find_rule, rule_params, rule_words
from jaxspec.spec.neighbours import neighbour_table
from jaxspec.spec.verify import (
    Annealed,
    Block,
    Coupled,
    CoupledRelaxed,
    GreedySet,
    Grouped,
    Judge,
    KSeq,
    Lantern,
    Rejection,
    Typical,
)

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
    "typical": Typical(),
}


@pytest.mark.parametrize("words", NAMED)
def test_words_and_rules_are_each_others(words):
    assert find_rule(words) == NAMED[words]
    assert rule_words(NAMED[words]) == words


def test_every_rule_has_a_case_and_says_whether_it_is_lossless():
    assert {words.partition(":")[0] for words in NAMED} == set(RULES)
    lossless = {words for words, rule in NAMED.items() if rule.lossless}
    assert lossless == {"coupled", "rejection", "block", "kseq", "greedy-set"}


def test_settings_at_their_default_are_not_said():
    assert rule_words(find_rule("lantern:k=3,lam=2,residual=published")) == (
        "lantern:k=3,lam=2.0"
    )
    assert find_rule("lantern:lam=2,k=3,") == find_rule("lantern:k=3,lam=2")


def test_rules_without_a_name_say_their_class():
    words = rule_words(Judge(lambda features: features[..., 0]))
    assert words.startswith("Judge") and "Judge" not in RULES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oak", "unknown rule 'oak'; choose coupled, rejection"),
        ("", "unknown rule ''"),
        ("Lantern:k=3", "unknown rule 'Lantern'"),
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
def test_wrong_rules_are_one_clear_line(text, words):
    with pytest.raises(ConfigError) as error:
        find_rule(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_parameters_are_the_bundles_own_where_they_reach():
    bundle = load_bundle()
    tokenizer = bundle.tokenizer
    stored = tokenizer.neighbours
    assert stored is not None
    for rule in (Lantern(stored.most, lam=2.0), CoupledRelaxed(5, 0.1)):
        assert rule_params(rule, bundle) == {"neighbours": stored}

    built = neighbour_table(tokenizer.params["codebook"], stored.most + 1)
    wider = rule_params(Lantern(stored.most + 1, lam=2.0), bundle)
    chex.assert_trees_all_equal(wider, {"neighbours": built})
    without = replace(bundle, tokenizer=replace(tokenizer, neighbours=None))
    chex.assert_trees_all_equal(
        rule_params(Lantern(stored.most + 1, lam=2.0), without), wider
    )
    # The stored table is what would be built.
    np.testing.assert_allclose(
        stored.distances, built.distances[:, : stored.most + 1], rtol=1e-5
    )


def test_rules_without_arrays_get_none():
    bundle = load_bundle()
    for rule in NAMED.values():
        given = rule_params(rule, bundle)
        if isinstance(rule, (Lantern, CoupledRelaxed)):
            assert set(given) == {"neighbours"}
        elif isinstance(rule, Grouped):
            assert given["embedding"].shape[0] == bundle.prior.config.vocab_size
        else:
            assert given is None
