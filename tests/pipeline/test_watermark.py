"""Watermarked images, from the command line and back."""

import itertools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxspec.checkpoint import save
from jaxspec.cli import main
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError, DataError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.crops import best_detection, tokens_of_crop
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.encoding import encode_images
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.watermark import Watermark, _log_probs, codebook_of, with_encoder
from jaxspec.watermark import Detection, Key, detect
from tests.tiny_bundle import save_bundle, save_next_scale_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def pipe(folder):
    return load_pipeline(folder, drafter=None)


def test_marks_are_those_of_the_probabilities_that_tokens_had(pipe):
    """A mark of no cost swaps tokens of equal probability alone; of any cost, all."""
    out = pipe(class_labels=[0, 1, 2] * 4, seed=1, cfg_scale=2.0)
    prompts = Prompts.from_classes([0, 1, 2] * 4)
    config = GenerationConfig(cfg_scale=2.0)

    def marked(threshold):
        key = Key(5).paired(codebook_of(pipe.bundle))
        mark = Watermark.of(pipe.bundle, key, threshold)
        return mark, mark.mark(pipe.bundle, prompts, config, out.tokens)

    mark, tokens = marked(float("inf"))
    found = mark.detect(tokens)
    assert found.share == 1.0 and found.p_value == 1 / 256  # of eight pairs
    shares = [mark.detect(marked(nats)[1]).share for nats in (-1e9, 0.0, 1.0, 1e9)]
    assert shares == sorted(shares) and shares[0] < shares[1] < shares[2]
    assert mark.detect(out.tokens).p_value > 0.02


def test_keys_with_too_few_pairs_are_refused(pipe):
    key = Key(5).paired(codebook_of(pipe.bundle))
    ((digest, mates),) = key.pairs.items()
    short = Key(5, {digest: mates[:0]})
    with pytest.raises(ConfigError, match="pairs 0 codes, and bundle .* has 16"):
        Watermark.of(pipe.bundle, short)


def test_probabilities_are_those_of_the_guided_distribution(pipe):
    prior = pipe.bundle.prior
    tokens = np.arange(32, dtype=np.int32).reshape(2, 16) % 16
    labels = np.array([0, 2], np.int32)
    settings = Sampling.create(2, cfg_scale=3.0, temperature=0.7)
    model = Transformer(prior.config)
    arguments = prior.params, labels, tokens, tokens
    log_p, same = _log_probs(model, True, *arguments, settings)
    np.testing.assert_array_equal(log_p, same)
    given, null = (
        np.asarray(
            model.score(prior.params, labels, tokens[:, :-1], null=jnp.full(2, n))[0]
        )
        for n in (False, True)
    )
    logits = (null + 3 * (given - null)) / 0.7
    logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_p, expected, atol=1e-4)


def test_the_command_line_marks_and_detects(folder, tmp_path, capsys):
    key, image = str(tmp_path / "my.key"), str(tmp_path / "one.png")
    command = ["generate", "--checkpoint", str(folder), "--num", "1", "--out", image]
    assert main([*command, "--watermark", key]) == 0
    assert "wrote a new key" in capsys.readouterr().err
    assert Image.open(image).size == (32, 32)  # no sheet, whose tokens are others
    detect = ["detect", image, "--checkpoint", str(folder), "--watermark", key]
    assert main(detect) == 0
    assert "tokens are green" in capsys.readouterr().out
    assert main(["detect", image, *detect[1:], "--together"]) == 0
    assert "2 images: watermark" in capsys.readouterr().out
    Image.open(image).crop((1, 1, 32, 32)).save(tmp_path / "part.png")
    assert main(["detect", str(tmp_path / "part.png"), *detect[2:], "--crops"]) == 0
    assert "tokens are green" in capsys.readouterr().out
    assert main([*detect, "--false-alarms", "2"]) == 2
    assert main(["detect", image, "--watermark", str(tmp_path / "no.key")]) == 2
    capsys.readouterr()
    assert main(["detect", image, "--watermark", key]) == 2  # another tokenizer
    assert "has marked no image of bundle" in capsys.readouterr().err
    (tmp_path / "bad.key").write_text("x")
    assert main([*command, "--watermark", str(tmp_path / "bad.key")]) == 2
    assert "holds no key" in capsys.readouterr().err


@pytest.mark.slow
def test_images_of_a_folder_carry_the_mark(folder, tmp_path, capsys):
    key, many = str(tmp_path / "my.key"), tmp_path / "many"
    (tmp_path / "lines.txt").write_text("0\n1\n2\n")
    command = ["generate", "--checkpoint", str(folder), "--watermark", key]
    command += ["--prompts", str(tmp_path / "lines.txt"), "--out-dir", str(many)]
    assert main(command) == 0
    images = sorted(map(str, many.glob("*.png")))
    assert len(images) == 3
    # The same image alone; without the mark it is another one.
    one = ["generate", "--checkpoint", str(folder), "--num", "1", "--classes", "0"]
    file = str(tmp_path / "one.png")
    assert main([*one, "--watermark", key, "--out", file]) == 0
    first, alone = (np.asarray(Image.open(x)) for x in (images[0], file))
    np.testing.assert_array_equal(first, alone)
    plain = tmp_path / "plain"
    bare = [x for x in command if x not in ("--watermark", key)]
    bare[bare.index(str(many))] = str(plain)
    assert main(bare) == 0
    assert (np.asarray(Image.open(sorted(plain.glob("*.png"))[0])) != first).any()
    # Neither another key nor none continues the folder.
    command[command.index(key)] = str(tmp_path / "other.key")
    assert main(command) == 2
    bare[bare.index(str(plain))] = str(many)
    assert main(bare) == 2
    assert capsys.readouterr().err.count("another watermark") == 2


def test_given_rows_are_not_marked(pipe):
    out = pipe(class_labels=[0, 1], seed=1, cfg_scale=2.0)
    prompts = Prompts.from_classes([0, 1])
    prompts = prompts.with_prefix(out.tokens[:, :8], pipe.bundle.prior.config)
    key = Key(5).paired(codebook_of(pipe.bundle))
    mark = Watermark.of(pipe.bundle, key, float("inf"))
    config = GenerationConfig(cfg_scale=2.0)
    tokens = mark.mark(pipe.bundle, prompts, config, out.tokens)
    np.testing.assert_array_equal(tokens[:, :8], out.tokens[:, :8])
    assert mark.detect(tokens[:, 8:]).share == 1.0


def test_parts_of_images_have_the_tokens_of_the_whole():
    """Most of them, at the right place; at others hardly any."""
    bundle = load_bundle("fruits64")
    side, step = 64, 4
    rows, columns = np.mgrid[:side, :side]
    ring = np.hypot(rows - 32, columns - 30)
    shape = np.stack([rows * 3, columns * 2 + 60, 200 - ring * 3], -1)
    image = np.where((ring < 24)[..., None], shape, 255).clip(0, 255).astype(np.uint8)
    tokens = encode_images(bundle, [image])
    image = decode_images(bundle, tokens)[0]
    whole = encode_images(bundle, [image])[0].reshape(16, 16)
    top, left = 3, 2
    found = tokens_of_crop(bundle, image[top:, left:-5]).reshape(4, 4, 16, 16)
    # As many rows as the part covers, whichever its place.
    covered = found >= 0
    assert covered.any(3).sum(2).min() == 14 and covered.any(3).sum(2).max() == 15
    inner = (slice(2, 14), slice(3, 12))
    equal = (found[:, :, *inner] == whole[inner]).mean((2, 3))
    right = equal[top % step, left % step]
    equal[top % step, left % step] = 0
    assert right > 0.8 > equal.max() + 0.1
    with pytest.raises(DataError, match="more than the 64 x 64"):
        tokens_of_crop(bundle, np.zeros((99, 9, 3), np.uint8))


def test_models_without_a_grid_of_tokens_have_no_crops(tmp_path):
    bundle = load_bundle(save_next_scale_bundle(tmp_path))
    with pytest.raises(ConfigError, match="are no grid"):
        tokens_of_crop(bundle, np.zeros((9, 9, 3), np.uint8))


def test_another_encoder_of_the_same_codes_reads_images(pipe, folder, tmp_path):
    bundle, own = pipe.bundle, pipe.bundle.tokenizer
    kernel = own.params["quant_conv"]["kernel"]
    turned = {**own.params["quant_conv"], "kernel": -kernel}
    other = replace(own, params={**own.params, "quant_conv": turned})
    save(tmp_path / "tokenizer", other)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    read = with_encoder(bundle, tmp_path)
    found = encode_images(read, [image])[0]
    np.testing.assert_array_equal(found, encode_images(read, [image], 1)[0])
    assert (found != encode_images(bundle, [image])[0]).any()
    codes = replace(own, params={**own.params, "codebook": -own.params["codebook"]})
    save(tmp_path / "codes" / "tokenizer", codes)
    with pytest.raises(ConfigError, match="has other codes"):
        with_encoder(bundle, tmp_path / "codes")
    turned = replace(other, config=replace(own.config, order="coarse"))
    save(tmp_path / "order" / "tokenizer", turned)
    again = encode_images(with_encoder(bundle, tmp_path / "order"), [image])[0]
    np.testing.assert_array_equal(again, found)  # in the order of the model
    free = replace(own, config=replace(own.config, normalized="none"))
    save(tmp_path / "free" / "tokenizer", free)
    with pytest.raises(ConfigError, match="another configuration"):
        with_encoder(bundle, tmp_path / "free")


def test_several_tests_of_an_image_raise_no_false_alarm():
    """Over all keys of six pairs; the least probability alone is too small."""
    mates = np.arange(12) ^ 1
    rows = np.random.default_rng(0).integers(0, 12, (3, 9))
    found = []
    for key in itertools.product((False, True), repeat=6):
        green = np.stack([key, np.logical_not(key)], 1).reshape(-1)
        tests = [detect(row, mates, green) for row in rows]
        found.append((best_detection(tests).p_value, min(x.p_value for x in tests)))
    bounds, least = np.array(found).T
    alphas = np.unique(least)
    assert all((bounds <= alpha).mean() <= alpha for alpha in alphas)
    assert any((least <= alpha).mean() > alpha for alpha in alphas)
    tests = [Detection(5, 8, 0.3), Detection(8, 8, 0.001), Detection(6, 8, 0.1)]
    assert best_detection(tests) == Detection(8, 8, 0.003, 3)
    assert best_detection(tests[:1] * 9).p_value == 1.0


def test_a_key_that_fails_loses_no_images(tmp_path, capsys):
    """It is read before anything is generated."""
    folder = save_next_scale_bundle(tmp_path)
    image = tmp_path / "one.png"
    command = ["generate", "--checkpoint", str(folder), "--num", "1"]
    command += ["--out", str(image), "--watermark", str(tmp_path / "my.key")]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert "token by token" in captured.err and "generating" not in captured.err
    assert not image.exists() and not (tmp_path / "my.key").exists()


def test_other_models_carry_no_mark(tmp_path):
    bundle = load_pipeline(save_next_scale_bundle(tmp_path)).bundle
    with pytest.raises(ConfigError, match="token by token"):
        Watermark.of(bundle, Key(1))
