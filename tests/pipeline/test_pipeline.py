"""Pipeline: images in three lines, previews, and refused requests."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxspec
from jaxspec.errors import ConfigError
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts

LABELS = [0, 32, 48]
SETTINGS = {"seed": 0, "cfg_scale": 2.0, "batch_size": 3}


@pytest.fixture(scope="module")
def pipe():
    return jaxspec.load_pipeline("fruits64")


@pytest.fixture(scope="module")
def out(pipe):
    return pipe(class_labels=LABELS, **SETTINGS)


@pytest.fixture(scope="module")
def previews(pipe, out):
    """The first call that needs programs for previews, so it compiles them."""
    return list(pipe.stream(class_labels=LABELS, rounds=25, **SETTINGS))


def test_three_lines_make_images(pipe, out):
    assert [type(image) for image in out.images] == [Image.Image] * 3
    assert out.images[0].size == (64, 64)
    assert out.tokens.shape == (3, 256) and out.tokens.min() >= 0
    assert out.stats.tokens_per_call >= 1 and out.stats.seconds > 0


def test_objects_print_in_a_few_short_lines(pipe, out, previews):
    bundle = pipe.bundle
    for value in (pipe, bundle, bundle.prior, bundle.drafter, out, previews[-1]):
        lines = repr(value).splitlines()
        assert len(lines) <= 3 and max(map(len, lines)) < 120
    assert "5.66 M parameters, float32" in repr(bundle.prior)
    assert "drafter='dflash'" in repr(pipe)


@pytest.mark.parametrize("dtype", ["foo", "int8", 5])
def test_dtypes_that_parameters_cannot_have_are_one_sentence(dtype):
    for load in (jaxspec.load_pipeline, lambda dtype: jaxspec.load("x", dtype=dtype)):
        with pytest.raises(ConfigError, match=f"dtype={dtype!r} is no dtype of"):
            load(dtype=dtype)


@pytest.mark.slow
def test_a_loaded_drafter_serves_an_own_engine(pipe, out):
    """Its parameters are joined with those of the target already."""
    model = jaxspec.Transformer(pipe.bundle.prior.config)
    engine = jaxspec.Engine(
        model.as_target(), 8, pipe.loaded.drafter, jaxspec.Tree.named("chain-3")
    )
    prior = pipe.bundle.prior.params
    variables = engine.variables(prior, pipe.loaded.params)
    again = engine.variables(prior, pipe.bundle.drafter.params)
    assert jax.tree.structure(variables) == jax.tree.structure(again)
    result = jax.jit(engine.generate)(
        variables,
        jnp.array(LABELS),
        sampling=jaxspec.Sampling.create(cfg_scale=2.0),
        keys=jax.random.key(0),
    )
    np.testing.assert_array_equal(result.tokens, out.tokens[:, :8])


def test_the_tokens_are_those_of_plain_decoding(pipe, out):
    config = GenerationConfig(**SETTINGS)
    prompts, root = Prompts.from_classes(LABELS), jaxspec.Tree.root()
    plain = generate(pipe.bundle, prompts, config, root, loaded=pipe.loaded)
    np.testing.assert_array_equal(out.tokens, plain.tokens)


def test_labels_are_numbers_or_names_and_programs_are_kept(pipe, out):
    names = [pipe.class_names[label] for label in LABELS]
    again = pipe(class_labels=names, **SETTINGS)
    np.testing.assert_array_equal(again.tokens, out.tokens)
    assert again.stats.compile_seconds < 0.2 * out.stats.compile_seconds


def test_previews_grow_into_the_result(out, previews):
    assert [p.done for p in previews] == [False] * (len(previews) - 1) + [True]
    fractions = [p.fraction for p in previews]
    assert len(previews) > 2 and fractions == sorted(fractions) and fractions[-1] == 1
    np.testing.assert_array_equal(previews[-1].tokens, out.tokens)
    np.testing.assert_array_equal(previews[-1].images[0], np.asarray(out.images[0]))
    first = previews[0]
    missing = first.tokens[0] < 0
    cells = first.images[0].reshape(16, 4, 16, 4, 3).transpose(0, 2, 1, 3, 4)
    gray = (cells.reshape(256, -1) == 128).all(axis=1)
    np.testing.assert_array_equal(gray, missing)


def test_a_callback_receives_previews_and_changes_no_token(pipe, out, previews):
    """Its own time and compilation are no part of the reported time."""
    seen = []

    def show(preview):
        seen.append(preview.fraction)
        time.sleep(0.2)

    began = time.perf_counter()
    again = pipe(class_labels=LABELS, callback=show, callback_rounds=25, **SETTINGS)
    wall = time.perf_counter() - began
    assert len(seen) > 2 and seen[-1] == 1
    np.testing.assert_array_equal(again.tokens, out.tokens)
    stats = again.stats
    assert 0 < stats.seconds < wall - stats.compile_seconds - 0.2 * len(seen)
    assert stats.compile_seconds < 0.2 * previews[-1].compile_seconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": ["an apple"]}, "takes `class_labels` alone"),
        ({"class_labels": [0], "prompts": ["a"]}, "takes `class_labels` alone"),
        ({}, "takes `class_labels` alone"),
        ({"class_labels": "Apple 10"}, "`class_labels` is a list"),
        ({"class_labels": []}, "give at least one prompt"),
        ({"class_labels": 5}, "`class_labels` is a list"),
        ({"class_labels": [0], "callback": print, "callback_rounds": 0}, "rounds=0"),
        ({"class_labels": [0], "tree": 5}, "tree=5 is no tree"),
        ({"class_labels": [0], "verifier": 5}, "verifier=5 is no verifier"),
        ({"class_labels": [999]}, "unknown class '999'"),
        ({"class_labels": [0], "temprature": 1.0}, "unknown setting 'temprature'"),
        ({"class_labels": [0], "temperature": -1.0}, "temperature"),
        ({"class_labels": [0], "verifier": "magic"}, "unknown verifier 'magic'"),
        ({"class_labels": [0], "tree": "oak"}, "unknown tree 'oak'"),
    ],
)
def test_impossible_requests_are_refused_in_one_sentence(pipe, arguments, words):
    with pytest.raises(ConfigError, match=words):
        pipe(**arguments)


@pytest.mark.slow
def test_without_a_drafter_it_decodes_plainly():
    plain = jaxspec.load_pipeline(drafter=None)
    out = plain(class_labels=[0], max_new_tokens=4)
    assert out.tokens.shape == (1, 4) and out.stats.tokens_per_call == 1
    pixels = np.asarray(out.images[0])  # a part of an image, the rest gray
    assert (pixels[4:] == 128).all() and (pixels[:4, :16] != 128).any()
    with pytest.raises(ConfigError, match="has no drafter"):
        plain(class_labels=[0], tree="chain-3")
