"""Captions: prompts of a text-to-image model, its examples, and bad input."""

import json

import numpy as np
import pytest

from jaxspec.cli import main
from jaxspec.demo.drawing import description, events, read_request
from jaxspec.errors import ConfigError
from jaxspec.pipeline.captions import with_names
from jaxspec.pipeline.pipeline import load_pipeline
from tests.tiny_bundle import save_captioned_bundle

EXAMPLES = ["a red apple, 3d", "penguin, flat", "🦊"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_captioned_bundle(
        tmp_path_factory.mktemp("captioned"), examples=EXAMPLES, styles=["3d", "flat"]
    )


@pytest.fixture(scope="module")
def pipe(folder):
    return load_pipeline(folder)


def test_each_image_follows_its_caption_and_seed_alone(pipe):
    prompts = ["a red apple", "penguin", "a red apple"]
    out = pipe(prompts=prompts, seed=1, batch_size=3)
    plain = pipe(prompts=prompts, seed=1, batch_size=3, tree="root")
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert (out.tokens[0] != out.tokens[2]).any()  # keys of their own
    other = pipe(prompts=["a red apple", "apple", "a red apple"], seed=1, batch_size=3)
    np.testing.assert_array_equal(out.tokens[[0, 2]], other.tokens[[0, 2]])


@pytest.mark.slow
def test_without_a_prompt_the_command_line_generates_the_examples(folder, tmp_path):
    report = tmp_path / "report.json"
    command = ["generate", "--checkpoint", str(folder), "--tree", "root"]
    command += ["--out", str(tmp_path / "a.png"), "--report", str(report)]
    assert main(command) == 0
    assert json.loads(report.read_text())["labels"] == EXAMPLES
    assert main([*command, "--num", "4"]) == 0
    assert json.loads(report.read_text())["labels"] == [*EXAMPLES, EXAMPLES[0]]


def test_the_page_offers_examples_and_styles(pipe):
    about = description(pipe)
    assert about["captioned"] and about["examples"] == EXAMPLES
    assert about["styles"] == ["3d", "flat"]
    found = list(events(pipe, read_request({"prompt": "fox", "count": "1"}, pipe)))
    assert found[-1]["kind"] == "end" and found[-1]["tokens"] == 16


@pytest.mark.parametrize(
    "prompt", ["яблоко", "苹果", "👩🏽\u200d🚀", "❤\ufe0f", "xqzvk", "a\nb\x00"]
)
def test_any_text_is_a_caption(pipe, prompt):
    assert pipe(prompts=[prompt], tree="root").tokens.shape == (1, 16)


NAMES = {
    "🦊": "fox",
    "👩": "woman",
    "👩\u200d💻": "woman technologist",
    "❤": "red heart",
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("🦊", "fox"),
        ("🦊, 3d", "fox, 3d"),
        ("a 🦊❤️", "a fox red heart"),
        ("👩🏽\u200d💻", "woman technologist"),  # the longest, without its skin tone
        ("#1 🐧", "#1 🐧"),
        ("fox", "fox"),
        (3, 3),
    ],
)
def test_characters_with_names_are_read_as_these(text, words):
    assert with_names([text], NAMES) == [words]
    assert with_names([text], {}) == [text]


def test_an_emoji_draws_what_its_name_draws(tmp_path, pipe):
    named = load_pipeline(save_captioned_bundle(tmp_path / "named", names=NAMES))

    def drawn(pipe, prompt):
        return pipe(prompts=[prompt], seed=1, tree="root").tokens

    np.testing.assert_array_equal(drawn(named, "🦊, 3d"), drawn(named, "fox, 3d"))
    assert (drawn(pipe, "🦊, 3d") != drawn(pipe, "fox, 3d")).any()


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([""], "prompt 0 is empty"),
        (["apple", " \n"], "prompt 1 is empty"),
        (["\ud83e"], "prompt 0 is not UTF-8 text"),
        ("apple", "`prompts` is a list"),
        (None, "takes `prompts` alone"),
    ],
)
def test_other_prompts_are_one_sentence(pipe, prompts, words):
    with pytest.raises(ConfigError, match=words):
        pipe(prompts=prompts)


def test_long_captions_are_cut_and_named(folder, tmp_path, capsys):
    command = ["generate", "--checkpoint", str(folder), "--tree", "root", "--num", "1"]
    command += ["--prompt", "word " * 2000, "--out", str(tmp_path / "a.png")]
    assert main(command) == 0
    assert "prompt 0" in capsys.readouterr().err
