"""Comparison of drafters from the command line."""

import json

import pytest
from PIL import Image

from jaxspec.cli import main


@pytest.mark.slow
def test_drafters_are_compared_in_one_run(tmp_path):
    stem = tmp_path / "drafters"
    command = ["bench", "drafters", "--drafters", "own", "prompt-lookup"]
    command += ["--nodes", "5", "--cfg-scales", "2", "--num", "1", "--batch", "1"]
    assert main([*command, "--out", str(stem)]) == 0
    result = json.loads(stem.with_suffix(".json").read_text())
    own, lookup = result["rows"]
    assert own["drafter"] == "dflash" and own["tree"] == "Beam"
    assert lookup["drafter"] == "prompt-lookup" and lookup["tree"] == "Tree"
    assert own["identical"] and lookup["identical"]
    assert own["tokens_per_call"] > lookup["tokens_per_call"] >= 1
    assert own["parameters"] > 1e5 and lookup["parameters"] == 0
    assert own["drafter_cost"] > 0 and own["plain_seconds"] > 0
    text = stem.with_suffix(".md").read_text()
    assert "## cfg 2, coupled (lossless)" in text and "bench drafters" in text
    assert Image.open(stem.with_suffix(".png")).size[0] > 300


@pytest.mark.slow
def test_interrupted_comparison_is_resumed(tmp_path, capsys):
    stem = tmp_path / "drafters"
    command = ["bench", "drafters", "--nodes", "5", "--cfg-scales", "2"]
    command += ["--num", "1", "--batch", "1", "--out", str(stem), "--drafters"]
    assert main([*command, "recycling"]) == 0
    [first] = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert main([*command, "recycling", "prompt-lookup", "--resume"]) == 0
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert rows[0] == first  # equal seconds: it was not measured again
    assert [row["drafter"] for row in rows] == ["recycling", "prompt-lookup"]
    assert main([*command, "recycling", "--resume", "--num", "2"]) == 2
    assert "same --num and --batch" in capsys.readouterr().err
