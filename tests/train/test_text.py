"""Training on text: windows, a target, its drafter, and a table of drafters."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxspec.cli import main
from jaxspec.data.text import byte_windows
from jaxspec.errors import ConfigError, DataError
from jaxspec.pipeline.bundle import load_bundle

TINY = Path(__file__).parent / "tiny_text.py"
WORDS = b"the cat sat on the mat\n\nand the dog on the log\n\n" * 30


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "words.txt").write_bytes(WORDS)
    return tmp_path


def test_windows_are_parts_of_the_text_and_its_end_is_held_out(folder):
    source = byte_windows(folder / "words.txt", 32, heldout=False)
    held = byte_windows(folder / "words.txt", 32, heldout=True)
    windows, labels = source.take(np.arange(5), np.random.default_rng(0))
    assert windows.shape == (5, 32) and windows.dtype == np.int32 and not labels.any()
    for window in windows:
        assert bytes(window.astype(np.uint8)) in WORDS[: int(0.9 * len(WORDS)) + 1]
    end = WORDS[-int(0.1 * len(WORDS)) :]
    assert end.startswith(bytes(held.tokens.reshape(-1)))
    assert source.digest != held.digest
    assert bytes(source.tokens[0, 1]) == WORDS[32:64]
    with pytest.raises(DataError, match="no text file"):
        byte_windows(folder / "none.txt", 32, heldout=False)
    with pytest.raises(DataError, match="shorter"):
        byte_windows(folder / "words.txt", 2000, heldout=True)


@pytest.mark.slow
def test_a_text_model_and_its_drafter_are_trained_and_measured(folder, capsys):
    command = ["--config", str(TINY), "--workdir", str(folder / "run")]
    command += ["--manual-dir", str(folder)]
    for part in ("prior", "drafter"):
        assert main(["train", part, *command]) == 0
    checkpoint = folder / "run" / "checkpoint"
    bundle = load_bundle(checkpoint)
    assert bundle.image_tokenizer is None
    with pytest.raises(ConfigError, match="makes text, no images"):
        _ = bundle.tokenizer
    assert "end of the text" in (checkpoint / "prior" / "README.md").read_text()
    stem = folder / "table"
    table = ["bench", "drafters", "--checkpoint", str(checkpoint), "--num", "2"]
    table += ["--drafters", "own", "prompt-lookup", "early-exit-1", "--nodes", "4"]
    table += ["--length", "9", "--out", str(stem)]
    assert main(table) == 2
    assert "give --prompts FILE" in capsys.readouterr().err
    assert main([*table, "--prompts", str(folder / "words.txt")]) == 0
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert [row["drafter"] for row in rows] == [
        "eagle",
        "prompt-lookup",
        "early-exit-1",
    ]
    assert all(row["identical"] and row["cfg_scale"] == 1.0 for row in rows)
    assert main(["train", "tokenizer", *command]) == 2
    assert "text has no tokenizer" in capsys.readouterr().err
