"""`jaxspec eval captions`, with models that were trained on the way."""

import json
import shutil
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.pipeline.bundle import load_bundle
from tests.data.emoji_packages import write_packages

TINY = Path(__file__).parents[1] / "train" / "tiny_emoji.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_packages(tmp_path_factory.mktemp("emoji"))
    return ["--data-dir", str(folder / "tfds"), "--manual-dir", str(folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    out = tmp_path_factory.mktemp("run")
    for part in ("tokenizer", "prior", "matcher", "drafter"):
        command = ["train", part, "--config", str(TINY), "--out", str(out)]
        assert main([*command, *data]) == 0
    return out


def test_a_prior_of_captions_records_captions_to_try_and_styles(trained):
    bundle = load_bundle(trained)
    assert bundle.styles == ["noto", "3d", "flat"] and bundle.names["🍏"] == "red apple"
    assert set(bundle.examples) == {f"red apple, {s}" for s in bundle.styles}
    assert (trained / "checkpoint" / "matcher" / "tokenizer.json").is_file()


def test_every_split_has_ranks_and_the_nearest_training_images(trained, data, tmp_path):
    command = ["eval", "captions", "--checkpoint", str(trained), "--data", "emoji64"]
    command += ["--splits", "originals", "test", "--num", "3", "--batch", "2"]
    assert main([*command, *data, "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    originals, held = report["rows"]
    assert [originals["split"], held["split"]] == ["originals", "test"]
    # The first copy of an original is itself; held-out images are in no copy.
    assert originals["real_nearest_median"] == 0
    for row in report["rows"]:
        assert 0 <= row["ranked_first"] <= 1 and row["nearest_least"] > 1
    sheet = np.asarray(Image.open(tmp_path / "report.png"))
    assert sheet.shape[0] > 128 and (sheet < 250).any()
    assert "ranked first" in (tmp_path / "report.md").read_text()


def test_a_prior_starts_from_another_with_its_text_encoder_and_vocabulary(
    trained, data, tmp_path
):
    start, out = tmp_path / "start", tmp_path / "run"
    shutil.copytree(trained / "checkpoint", start)
    file = start / "text_encoder" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=3))
    command = ["train", "prior", "--config", str(TINY), *data, "--out", str(out)]
    command += ["--checkpoint", str(trained), "--start", str(start), "--steps", "1"]
    assert main([*command, "--set", "train_prior.learning_rate=1e-9"]) == 0
    for part in ("prior", "text_encoder"):
        before, after = (
            load_checkpoint(folder / part).params
            for folder in (start, out / "checkpoint")
        )
        chex.assert_trees_all_close(before, after, atol=1e-6)
    written = out / "checkpoint" / "text_encoder" / "tokenizer.json"
    assert written.read_text() == file.read_text()


def test_a_start_without_a_text_encoder_is_refused(trained, data, tmp_path, capsys):
    start = tmp_path / "start"
    shutil.copytree(trained / "checkpoint" / "prior", start / "prior")
    command = ["train", "prior", "--config", str(TINY), *data, "--out", str(tmp_path)]
    command += ["--checkpoint", str(trained), "--start", str(start)]
    assert main(command) == 2
    assert "no text_encoder/ beside its prior" in capsys.readouterr().err


def test_models_of_classes_are_refused(data, tmp_path, capsys):
    command = ["eval", "captions", "--checkpoint", "fruits64", "--data", "emoji64"]
    assert main([*command, *data, "--out", str(tmp_path / "report")]) == 2
    assert "reads no captions" in capsys.readouterr().err


def test_a_prior_starts_with_the_text_encoder_of_a_matcher(
    trained, data, tmp_path, capsys
):
    matcher, out = tmp_path / "matcher", tmp_path / "run"
    shutil.copytree(trained / "checkpoint" / "matcher", matcher)
    command = ["train", "prior", "--config", str(TINY), *data, "--out", str(out)]
    command += ["--checkpoint", str(trained), "--encoder", str(matcher), "--steps", "1"]
    command += ["--set", "train_prior.learning_rate=1e-9"]
    assert main(command) == 2  # it knows held-out images
    assert "--set data.matcher_split=train" in capsys.readouterr().err
    config = (matcher / "config.json").read_text()
    (matcher / "config.json").write_text(config.replace("train+test", "train"))
    assert main(command) == 0
    after = load_checkpoint(out / "checkpoint" / "text_encoder")
    before = load_checkpoint(matcher).params["text"]
    chex.assert_trees_all_close(before, after.params, atol=1e-6)
    text = (out / "checkpoint" / "text_encoder" / "tokenizer.json").read_text()
    assert text == (matcher / "tokenizer.json").read_text()


def test_a_folder_without_an_encoder_is_refused(trained, data, tmp_path, capsys):
    command = ["train", "prior", "--config", str(TINY), *data, "--out", str(tmp_path)]
    command += ["--checkpoint", str(trained), "--encoder"]
    assert main([*command, str(trained / "checkpoint" / "tokenizer")]) == 2
    assert "neither a matcher nor a text encoder" in capsys.readouterr().err
    assert main([*command, str(trained)]) == 2
    assert "holds a matcher and a text encoder; name" in capsys.readouterr().err


def test_a_working_folder_keeps_the_vocabulary_that_it_began_with(
    trained, data, tmp_path, capsys
):
    command = ["train", "prior", "--config", str(TINY), *data, "--out", str(tmp_path)]
    command += ["--checkpoint", str(trained), "--steps", "1"]
    encoder = tmp_path / "other"
    shutil.copytree(trained / "checkpoint" / "text_encoder", encoder)
    assert main([*command, "--encoder", str(encoder)]) == 0
    file = encoder / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert main([*command, "--encoder", str(encoder)]) == 2
    assert "is not the vocabulary of" in capsys.readouterr().err
