"""A drafter of a model of text, trained on the model's answers to prompts."""

import json

import numpy as np
import pytest

from jaxspec.cli import main
from jaxspec.errors import ConfigError, DataError
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.pipeline.prompt_inputs import read_prompts
from jaxspec.train.answers import WINDOW, answer_sources
from tests.text_model import write_model

PROMPTS = [" is".join(["this"] * i) for i in range(1, 11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS), "utf-8")
    return file


def stream_of(source):
    return source.tokens.reshape(-1)


@pytest.mark.slow
def test_windows_hold_prompts_and_answers_and_held_out_prompts_are_apart(
    folder, file, tmp_path
):
    train, held = answer_sources(folder, file, 32, seed=0, cache_dir=tmp_path)
    assert train.tokens.shape[2] == held.tokens.shape[2] == WINDOW
    values = read_prompts(load_bundle(folder), PROMPTS).values
    rows = [row[row >= 0] for row in values]
    np.testing.assert_array_equal(stream_of(train)[: len(rows[0])], rows[0])
    np.testing.assert_array_equal(stream_of(held)[: len(rows[9])], rows[9])
    # The longest prompt contains all others; it was asked in the held-out part alone.
    text = " ".join(map(str, stream_of(train)))
    assert " ".join(map(str, rows[9])) not in text
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.npy")}
    again, _ = answer_sources(folder, file, 32, seed=0, cache_dir=tmp_path)
    np.testing.assert_array_equal(again.tokens, train.tokens)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.npy")} == before
    other, _ = answer_sources(folder, file, 32, seed=5, cache_dir=tmp_path / "other")
    assert (
        len(other.tokens[0]) != len(train.tokens[0])
        or (other.tokens != train.tokens).any()
    )


@pytest.mark.slow
def test_a_cache_holds_the_answers_of_each_seed_apart(folder, file, tmp_path):
    """Held-out answers of one seed are no training answers of the next."""
    shared, fresh = tmp_path / "shared", tmp_path / "fresh"
    parts = [
        answer_sources(folder, file, 16, seed=seed, cache_dir=cache)
        for seed, cache in ((0, shared), (1, shared), (1, fresh))
    ]
    assert len(list(shared.iterdir())) == 4
    for found, wanted in zip(parts[1], parts[2], strict=True):
        np.testing.assert_array_equal(found.tokens, wanted.tokens)


def test_no_answers_are_refused(folder, file, tmp_path):
    with pytest.raises(ConfigError, match="0 answers; give at least 1"):
        answer_sources(folder, file, 0, seed=0, cache_dir=tmp_path)


@pytest.mark.slow
def test_a_trained_drafter_drafts_for_the_model(folder, file, tmp_path, capsys):
    command = ["train", "drafter", "--checkpoint", str(folder), "--prompts", str(file)]
    command += ["--out", str(tmp_path / "run"), "--steps", "3"]
    command += ["--set", "train_drafter.self_generated=32"]
    command += ["--set", "train_drafter.evaluate_every=3"]
    assert main(command) == 0
    drafter = str(tmp_path / "run" / "checkpoint" / "drafter")
    card = (tmp_path / "run" / "checkpoint" / "drafter" / "README.md").read_text()
    assert "answers of" in card
    pipe = load_pipeline(folder, drafter=drafter)
    settings = {"prompts": PROMPTS[:2], "seed": 1, "max_new_tokens": 24}
    fast = pipe(tree="chain-3", batch_size=2, **settings)
    plain = pipe(tree="root", batch_size=2, **settings)
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    lines = (tmp_path / "run" / "drafter" / "metrics.jsonl").read_text().splitlines()
    assert "tokens_per_call" in json.loads(lines[-1])


@pytest.mark.parametrize(
    "options",
    [
        ["prior", "--checkpoint", "x", "--prompts", "p"],
        ["drafter", "--prompts", "p"],
        ["drafter", "--checkpoint", "x", "--prompts", "p", "--config", "shakespeare"],
    ],
)
def test_prompts_are_for_drafters_of_models_that_exist(options, capsys, tmp_path):
    assert main(["train", *options, "--out", str(tmp_path)]) == 2
    assert "--prompts FILE is for a drafter" in capsys.readouterr().err


def test_other_models_and_single_prompts_are_refused(folder, tmp_path, capsys):
    one = tmp_path / "one.txt"
    one.write_text("this", "utf-8")
    with pytest.raises(DataError, match="one prompt; write more"):
        answer_sources(folder, one, 16, seed=0, cache_dir=tmp_path)
    command = ["train", "drafter", "--checkpoint", "fruits64", "--prompts", str(one)]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "'fruits64' makes images" in capsys.readouterr().err
