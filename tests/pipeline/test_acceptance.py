"""A drafter that the target seldom accepts is named; others are not."""

import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec.cli.options import print_low_acceptance
from jaxspec.pipeline.acceptance import AcceptanceWarning, FirstDrafts, acceptance_note
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.image_folder import generate_image_folder
from jaxspec.pipeline.pipeline import Pipeline
from jaxspec.speculative.verify import GreedySet

LABELS = [0, 13, 26, 40, 53, 66]
SETTINGS = {"batch_size": 6, "max_new_tokens": 128, "cfg_scale": 2.0}
# Short generations on a CPU are not drafted unless a tree is named.
DRAFTED = {**SETTINGS, "tree": "optimal-5"}


@pytest.fixture(scope="module")
def pipe():
    return jaxspec.load_pipeline("fruits64")


def inner(loaded):
    """The trained drafter, whose logits are mixed with the target's last ones."""
    return loaded.drafter.drafter


def exchanged_layers(loaded):
    """Parameters that read the feature layers in another order."""
    layers = len(inner(loaded).feature_layers)

    def exchange(x):
        if x.ndim != 2 or x.shape[0] != layers * inner(loaded).target.width:
            return x
        return x.reshape(layers, -1, x.shape[1])[::-1].reshape(x.shape)

    return {**loaded.params, "own": jax.tree.map(exchange, loaded.params["own"])}


def permuted_tokens(loaded):
    """Parameters of a vocabulary in another order."""
    order = np.random.default_rng(0).permutation(inner(loaded).target.vocab_size)
    head = loaded.params["head"][:, order]
    return {
        **loaded.params,
        "embedding": loaded.params["embedding"][order],
        "head": head,
    }


def random_params(loaded):
    """Parameters of a drafter that was not trained."""
    return {**loaded.params, "own": inner(loaded).init_params(jax.random.key(0))}


CONTROLS = exchanged_layers, permuted_tokens, random_params


def with_params(pipe, make):
    """Pipeline with other parameters of the drafter, and the same programs."""
    loaded = replace(pipe.loaded, params=make(pipe.loaded))
    return Pipeline(pipe.bundle, loaded, pipe._programs)


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "changed",
    [{}, {"temperature": 0.7}, {"temperature": 0.0, "cfg_scale": 7.5}],
    ids=["as trained", "colder", "far from training"],
)
def test_the_true_drafter_is_not_named(pipe, changed):
    with warnings.catch_warnings():
        warnings.simplefilter("error", AcceptanceWarning)
        pipe(class_labels=LABELS, **{**DRAFTED, **changed})


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("make", CONTROLS, ids=lambda f: f.__name__)
def test_a_misconfigured_drafter_is_named_once_and_changes_no_token(pipe, make, capsys):
    wrong = with_params(pipe, make)
    with pytest.warns(AcceptanceWarning, match="its training measured 73% overlap"):
        out = wrong(class_labels=LABELS, **DRAFTED)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AcceptanceWarning)
        wrong(class_labels=LABELS, **DRAFTED)
    np.testing.assert_array_equal(
        out.tokens, pipe(class_labels=LABELS, **DRAFTED).tokens
    )
    print_low_acceptance(wrong.loaded, out.stats, GenerationConfig(**SETTINGS))
    assert capsys.readouterr().err.startswith("note: the target accepted")


def test_drafters_without_a_record_and_short_runs_are_not_named(pipe):
    wrong = with_params(pipe, permuted_tokens)
    config = GenerationConfig(**SETTINGS)
    with pytest.warns(AcceptanceWarning):
        result = FirstDrafts.of(wrong(class_labels=LABELS, **DRAFTED).stats)
    assert acceptance_note(wrong.loaded, result, config)
    assert not acceptance_note(replace(wrong.loaded, overlap=None), result, config)
    assert not acceptance_note(None, result, config)
    other = replace(config, verifier=GreedySet())  # its first child is no sample
    assert not acceptance_note(wrong.loaded, result, other)
    assert not acceptance_note(wrong.loaded, result._replace(rounds=63), config)
    assert not acceptance_note(wrong.loaded, result._replace(proposed=0), config)


@pytest.mark.slow
def test_a_folder_of_images_reports_low_acceptance(pipe, tmp_path):
    wrong = with_params(pipe, permuted_tokens)
    report = generate_image_folder(
        pipe.bundle,
        ["0", "66"],
        tmp_path,
        GenerationConfig(**SETTINGS),
        wrong.loaded.tree(),
        loaded=wrong.loaded,
    )
    assert report["acceptance_note"].startswith("the target accepted")
