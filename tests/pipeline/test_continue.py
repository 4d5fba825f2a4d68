"""Pipeline: images as tokens, images that are continued, and mixtures of classes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxspec
from jaxspec.cli import main
from jaxspec.errors import ConfigError, DataError
from jaxspec.io.images import to_bytes, to_unit
from jaxspec.io.rgb import fit_square
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.prompt_inputs import prompt_labels, resolve_prompts
from jaxspec.tokenizers.vqgan.model import Tokenizer
from tests.tiny_bundle import save_bundle

# Three images of 4 x 4 tokens in batches of two.
LABELS, SETTINGS = [0, 2, 1], {"seed": 5, "cfg_scale": 2.0, "batch_size": 2}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return jaxspec.load_pipeline(save_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def out(pipe):
    return pipe(LABELS, **SETTINGS)


@pytest.fixture(scope="module")
def rest(pipe, out):
    return pipe(LABELS, prefix=out.tokens, prefix_rows=2, **SETTINGS)


def test_the_first_rows_of_an_image_are_continued_to_the_same_image(out, rest):
    np.testing.assert_array_equal(rest.tokens, out.tokens)
    for image, whole in zip(rest.images, out.images, strict=True):
        np.testing.assert_array_equal(image, whole)
    assert rest.stats.new_tokens == 3 * 8
    assert rest.stats.tokens_per_call == 3 * 8 / rest.stats.calls.sum()


def test_another_class_or_seed_keeps_the_rows_and_changes_the_rest(pipe, out):
    given = {"prefix": jnp.asarray(out.tokens[:, :8])}
    others = [pipe([1, 0, 2], **given, **SETTINGS).tokens]
    others.append(pipe(LABELS, **given, **{**SETTINGS, "seed": 6}).tokens)
    for other in others:
        np.testing.assert_array_equal(other[:, :8], out.tokens[:, :8])
        assert (other[:, 8:] != out.tokens[:, 8:]).any()


def test_previews_and_callbacks_begin_with_the_prefix(pipe, out):
    seen = []
    again = pipe(
        LABELS,
        prefix=out.tokens,
        prefix_rows=2,
        callback=seen.append,
        callback_rounds=1,
        **SETTINGS,
    )
    np.testing.assert_array_equal(again.tokens, out.tokens)
    for preview in seen:
        expected = out.tokens[preview.indices]
        assert 0.5 < preview.fraction <= 1
        known = preview.tokens >= 0
        np.testing.assert_array_equal(preview.tokens[known], expected[known])
        assert known[:, :8].all() and preview.images.shape[1:] == (32, 32, 3)


@pytest.mark.slow
def test_max_new_tokens_leaves_out_the_prefix(pipe, out):
    """Also where a program for another prefix has been kept."""
    settings = {"max_new_tokens": 3, **SETTINGS}
    short = pipe(LABELS, prefix=out.tokens, prefix_rows=2, **settings)
    np.testing.assert_array_equal(short.tokens, out.tokens[:, :11])
    for rows in (2, 1):
        *_, last = pipe.stream(
            LABELS[:1], prefix=out.tokens[:1], prefix_rows=rows, **settings
        )
        np.testing.assert_array_equal(last.tokens, out.tokens[:1, : 4 * rows + 3])


def test_images_of_any_kind_are_encoded_as_training_images_are(pipe, tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 3), np.uint8)
    square = fit_square(image, 32)
    part = pipe.bundle.tokenizer
    tokenizer = Tokenizer(part.config)
    expected = np.asarray(tokenizer.encode(part.params, to_unit(square[None])))
    Image.fromarray(image).save(tmp_path / "image.png")
    kinds = [
        image,
        Image.fromarray(image),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        to_unit(image),
        np.dstack([image, np.full((50, 70), 255, np.uint8)]),  # opaque
    ]
    assert (to_bytes(to_unit(image)) == image).all()
    tokens = pipe.encode(kinds)
    assert tokens.dtype == np.int32 and tokens.shape == (6, 16)
    np.testing.assert_array_equal(tokens, expected.repeat(6, axis=0))
    np.testing.assert_array_equal(pipe.encode(np.stack([square] * 2)), tokens[:2])


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        (Image.new("RGB", (9, 9)), ConfigError, "`images` is a list"),
        (np.zeros((9, 9, 3), np.uint8), ConfigError, "`images` is a list"),
        ([], ConfigError, "give at least one image"),
        ([np.full((9, 9, 3), 2.0)], DataError, r"image 0 has floats outside of \[-1"),
        ([np.full((9, 9, 3), np.nan)], DataError, "image 0 has floats outside"),
        ([np.zeros((9, 9, 3), np.int32)], DataError, "image 0 is of int32"),
        (["no such file.png"], DataError, "cannot read 'no such file.png'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_images_that_cannot_be_encoded_are_refused_in_one_sentence(
    pipe, images, kind, words
):
    with pytest.raises(kind, match=words):
        pipe.encode(images)


TOKENS = np.zeros((3, 16), np.int32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prefix": TOKENS}, "a prefix of 16 tokens leaves nothing to generate"),
        ({"prefix": TOKENS, "prefix_rows": 4}, "a prefix of 16 tokens leaves nothing"),
        (
            {"prefix": TOKENS[:, :4], "prefix_rows": 2},
            "prefix_rows=2 are 8 tokens; the prefix has 4",
        ),
        ({"prefix": TOKENS, "prefix_rows": 0}, "prefix_rows=0"),
        ({"prefix_rows": 2}, "prefix_rows=2 needs image tokens to keep"),
        ({"prefix": TOKENS[:2], "prefix_rows": 2}, "2 prefixes do not fit 3 prompts"),
        ({"prefix": TOKENS[0]}, r"a prefix of int32 \[16\] is none"),
        ({"prefix": TOKENS[:, :4] / 2}, r"a prefix of float64 \[3, 4\] is none"),
        ({"prefix": TOKENS[:, :4] + 16}, "has the token 16; those of this model are 0"),
        ({"prefix": TOKENS[:, :4] - 1}, "has the token -1; those of this model are 0"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused_in_one_sentence(pipe, arguments, words):
    with pytest.raises(ConfigError, match=words):
        pipe(LABELS, **arguments, **SETTINGS)


def test_a_mixture_of_one_class_is_that_class(pipe, out):
    """Also beside mixtures of several, which it does not depend on."""
    mixed = pipe([{"0": 1.0}, 2, {0: 0.5, "2": 0.5}], **SETTINGS)
    np.testing.assert_array_equal(mixed.tokens[:2], out.tokens[:2])
    assert (mixed.tokens[2] != out.tokens[2]).any()


def test_mixing_is_linear_in_the_embedding_and_leaves_out_the_null_condition(pipe):
    """Equal to a class whose embedding is the mixture."""
    prior = pipe.bundle.prior
    model, weights = Transformer(prior.config), jnp.array([[0.25, 0.75, 0.0]])
    table = prior.params["classes"]["embedding"]
    mixed = table.at[0].set(0.25 * table[0] + 0.75 * table[1])
    params = {**prior.params, "classes": {"embedding": mixed}}
    tokens = jnp.arange(6)[None]
    for null in (jnp.array([False]), jnp.array([True])):
        logits, _ = model.score(prior.params, weights, tokens, null=null)
        expected, _ = model.score(params, jnp.array([0]), tokens, null=null)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    one = jax.nn.one_hot(jnp.arange(3), 3)
    np.testing.assert_array_equal(
        model.score(prior.params, one, tokens.repeat(3, 0))[0],
        model.score(prior.params, jnp.arange(3), tokens.repeat(3, 0))[0],
    )


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ({"0": 0.5, "1": 0.4}, "of a prompt add up to 0.9; they must add up to 1"),
        ({"0": 2.0, "1": -1.0}, "class weights=-1.0"),
        ({"0": 0.5, "pear": 0.5}, "unknown class 'pear'"),
        ({}, "add up to 0; they must"),
    ],
)
def test_impossible_mixtures_are_refused_in_one_sentence(pipe, label, words):
    with pytest.raises(ConfigError, match=words):
        pipe([label], **SETTINGS)


def test_mixtures_are_labeled_by_their_classes(pipe):
    prompts = resolve_prompts(pipe.bundle, [{"0": 0.5, "2": 0.5}, 1], None)
    assert prompt_labels(pipe.bundle, prompts) == ["0.5 0 + 0.5 2", "1 1"]
    wide = replace(pipe.bundle.prior.config, classes=4)
    with pytest.raises(ConfigError, match="weights of 3 classes; this prior has 4"):
        prompts.check(wide)


@pytest.mark.slow
def test_the_command_line_continues_a_file(pipe, out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out.images[0].save("image.png")
    save_bundle(tmp_path / "bundle")
    command = ["generate", "--checkpoint", "bundle", "--num", "2", "--seed", "5"]
    command += ["--classes", "0,2", "--continue", "image.png", "--report", "r.json"]
    assert main(command) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["tokens"] == 16  # eight new ones for each image
    given = pipe.encode(["image.png"])[:, :8].repeat(2, axis=0)
    expected = pipe([0, 2], prefix=given, **{**SETTINGS, "batch_size": 1}).images
    sheet = np.asarray(Image.open("samples.png"))
    shown = np.asarray(expected[0]).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(sheet[4:68, 4:68], shown)
    assert main([*command, "--rows", "4"]) == 2
    assert "leaves nothing to generate" in capsys.readouterr().err
    assert main(["generate", "--rows", "4"]) == 2
    assert "--rows N needs an image" in capsys.readouterr().err
