"""Models of text with a vocabulary of their own: prompts in, texts out."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import jaxspec
from jaxspec.cli import main
from jaxspec.convert.conversion import convert
from jaxspec.convert.reading.gguf.vocabulary import SPLITS, tokenizer_json
from jaxspec.errors import ConfigError
from tests.convert.gguf_models import original
from tests.text_model import END, TEMPLATE, VOCABULARY, write_model

SETTINGS = {"max_new_tokens": 12, "seed": 3, "batch_size": 2}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return jaxspec.load_pipeline(write_model(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def tokenizer(pipe):
    return tokenizers.Tokenizer.from_file(str(pipe.bundle.vocabulary))


@given(st.sampled_from(sorted(SPLITS)), st.text(max_size=20))
def test_every_text_survives_every_vocabulary(split, text):
    metadata = {**VOCABULARY, "tokenizer.ggml.pre": split}
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json(metadata))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_pairs_are_merged_and_special_tokens_are_not_split(tokenizer):
    tokens = tokenizer.encode("this<end>").tokens
    assert tokens == ["th", "i", "s", "<end>"]


def test_a_prompt_is_a_message_where_there_is_a_template(pipe, tokenizer):
    asked = pipe(prompts=["this", "a"], tree="root", **SETTINGS)
    spelled = ["<user>this<end><user>", "<user>a<end><user>"]
    raw = pipe(prompts=spelled, chat=False, tree="root", **SETTINGS)
    np.testing.assert_array_equal(asked.tokens, raw.tokens)
    other = pipe(prompts=["this", "a"], chat=False, tree="root", **SETTINGS)
    assert (other.tokens != raw.tokens).any()
    expected = [tokenizer.decode(row[row >= 0].tolist()) for row in asked.tokens]
    assert asked.texts == expected


def test_drafts_do_not_change_a_text(pipe):
    plain = pipe(prompts=["this", "a"], tree="root", **SETTINGS)
    fast = pipe(prompts=["this", "a"], tree="chain-3", **SETTINGS)
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert pipe.loaded.name == "prompt-lookup"


def test_a_stop_token_ends_a_text(pipe):
    assert pipe.bundle.prior.metadata["generation"] == {"stop_tokens": [END]}
    whole = pipe(prompts=["this"], tree="root", **SETTINGS)
    third = int(whole.tokens[0, 2])
    out = pipe(prompts=["this"], tree="root", stop_tokens=(third,), **SETTINGS)
    first = int(np.flatnonzero(whole.tokens[0] == third)[0])
    np.testing.assert_array_equal(
        out.tokens[0, : first + 1], whole.tokens[0, : first + 1]
    )
    assert (out.tokens[0, first + 1 :] == -1).all()
    assert out.stats.new_tokens == first + 1


def test_a_begin_token_is_added_where_the_release_does(tmp_path, pipe):
    folder = write_model(tmp_path, **{"tokenizer.ggml.add_bos_token": True})
    begun = jaxspec.load_pipeline(folder)
    ours = begun(prompts=["this"], chat=False, tree="root", **SETTINGS)
    spelled = pipe(prompts=["<begin>this"], chat=False, tree="root", **SETTINGS)
    np.testing.assert_array_equal(ours.tokens, spelled.tokens)


def test_a_saved_pipeline_keeps_its_vocabulary(pipe, tmp_path):
    pipe.save(tmp_path / "saved")
    again = jaxspec.load_pipeline(tmp_path / "saved")
    settings = {**SETTINGS, "tree": "root"}
    texts = pipe(prompts=["this"], **settings).texts
    assert again(prompts=["this"], **settings).texts == texts


def test_a_release_as_a_folder_has_the_same_settings(tmp_path, pipe):
    folder = tmp_path / "released"
    original(folder)
    tokenizer = pipe.bundle.vocabulary.read_text()
    (folder / "tokenizer.json").write_text(tokenizer)
    entries = {"chat_template": TEMPLATE, "eos_token": {"content": "<end>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    convert(folder, tmp_path / "bundle")
    bundle = jaxspec.load_pipeline(tmp_path / "bundle").bundle
    assert bundle.vocabulary.read_text() == tokenizer
    assert bundle.prior.metadata["generation"] == {"stop_tokens": [5]}
    settings = bundle.prior.metadata["text"]
    assert (settings["chat_template"], settings["eos_token"]) == (TEMPLATE, "<end>")


def test_without_a_template_prompts_are_continued(tmp_path):
    folder = write_model(tmp_path, **{"tokenizer.chat_template": ""})
    pipe = jaxspec.load_pipeline(folder)
    raw = pipe(prompts=["this"], chat=False, tree="root", **SETTINGS)
    assert pipe(prompts=["this"], tree="root", **SETTINGS).texts == raw.texts
    with pytest.raises(ConfigError, match="no chat template; use chat=False"):
        pipe(prompts=["this"], chat=True, **SETTINGS)


def test_the_command_prints_texts(pipe, tmp_path, capsys):
    folder, report = str(pipe.bundle.vocabulary.parent.parent), tmp_path / "r.json"
    command = ["generate", "--checkpoint", folder, "--max-tokens", "12", "--seed", "3"]
    command += ["--batch", "2", "--prompt", "this", "--prompt", "a"]
    assert main([*command, "--compare", "--report", str(report)]) == 0
    printed = capsys.readouterr()
    texts = pipe(prompts=["this", "a"], tree="root", **SETTINGS).texts
    assert printed.out == "".join(f"{text}\n" for text in texts)
    assert "texts       2 of 12 tokens" in printed.err
    fields = json.loads(report.read_text())
    assert fields["texts"] == texts and fields["identical_to_autoregressive"]
    assert main([*command, "--num", "4"]) == 2
    assert "--num is for images" in capsys.readouterr().err
    assert main(["generate", "--checkpoint", folder]) == 2
    assert "texts: give --prompt" in capsys.readouterr().err


def test_a_model_without_its_vocabulary_does_not_read_texts(tmp_path):
    folder = write_model(tmp_path, **{"tokenizer.ggml.model": "llama"})
    with pytest.raises(ConfigError, match="converted without a vocabulary"):
        jaxspec.load_pipeline(folder)(prompts=["this"], **SETTINGS)
