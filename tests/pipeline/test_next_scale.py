"""Next-scale models in the pipeline: all of its ways, without one of their own."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jaxspec.cli import main
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.sharding import make_mesh
from tests.tiny_bundle import save_bundle, save_next_scale_bundle

SETTINGS = {"seed": 3, "cfg_scale": 2.5, "top_k": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_next_scale_bundle(tmp_path_factory.mktemp("scales"))


@pytest.fixture(scope="module")
def pipe(folder):
    return load_pipeline(folder)


@pytest.fixture(scope="module")
def drawn(pipe):
    return pipe(class_labels=["apple", "plum", 1], **SETTINGS)


def test_class_names_become_images(drawn):
    assert drawn.tokens.shape == (3, 21) and (drawn.tokens >= 0).all()
    assert drawn.images[0].size == (16, 16)
    assert drawn.stats.tokens_per_call == 7  # three scales


def test_every_scale_is_a_preview(pipe, drawn):
    previews = list(pipe.stream(class_labels=[0, 2, 1], rounds=1, **SETTINGS))
    assert [int((p.tokens[0] >= 0).sum()) for p in previews] == [1, 5, 21]
    np.testing.assert_array_equal(previews[-1].tokens, drawn.tokens)
    last = np.stack([np.asarray(image) for image in drawn.images])
    np.testing.assert_array_equal(previews[-1].images, last)
    assert (previews[0].images != last).any()


def test_coarse_maps_of_an_image_are_continued(pipe, drawn):
    out = pipe(class_labels=[0, 2, 1], prefix=drawn.tokens, prefix_rows=2, **SETTINGS)
    np.testing.assert_array_equal(out.tokens, drawn.tokens)
    other = pipe(
        class_labels=[0, 2, 1],
        prefix=drawn.tokens,
        prefix_rows=2,
        **{**SETTINGS, "seed": 4},
    )
    np.testing.assert_array_equal(other.tokens[:, :5], drawn.tokens[:, :5])
    assert (other.tokens[:, 5:] != drawn.tokens[:, 5:]).any()
    tokens = pipe.encode(drawn.images)
    assert tokens.shape == (3, 21)


@pytest.mark.slow
def test_a_mesh_makes_the_same_tokens(folder, drawn):
    pipe = load_pipeline(folder, mesh=make_mesh(2, 2))
    out = pipe(class_labels=[0, 2, 1], **SETTINGS)
    np.testing.assert_array_equal(out.tokens, drawn.tokens)
    *_, last = pipe.stream(class_labels=[0, 2, 1], rounds=1, **SETTINGS)
    np.testing.assert_array_equal(last.tokens, drawn.tokens)


@pytest.mark.slow
def test_int8_and_bfloat16_run(folder):
    for options in ({"int8": True}, {"dtype": "bfloat16"}):
        out = load_pipeline(folder, **options)(class_labels=[0], **SETTINGS)
        assert (out.tokens >= 0).all()


def test_the_command_line_makes_a_sheet_and_a_folder(folder, tmp_path, capsys):
    sheet = str(tmp_path / "sheet.png")
    command = ["generate", "--checkpoint", str(folder), "--num", "4", "--seed", "3"]
    assert main([*command, "--out", sheet]) == 0
    assert Image.open(sheet).size[0] >= 32
    lines = tmp_path / "lines.txt"
    lines.write_text("apple\nplum\n")
    command = ["generate", "--checkpoint", str(folder), "--prompts", str(lines)]
    assert main([*command, "--out-dir", str(tmp_path / "many")]) == 0
    assert len(list((tmp_path / "many").rglob("*.png"))) == 2
    capsys.readouterr()
    assert main(["info", str(folder)]) == 0
    assert "next_scale" in capsys.readouterr().out
    assert main(["info", str(folder), "--plan"]) == 0
    bundle = capsys.readouterr().out
    work = tmp_path / "work" / "checkpoint"  # working folder of a training
    shutil.copytree(folder, work)
    assert main(["info", str(work.parent), "--plan"]) == 0
    assert capsys.readouterr().out.split()[1:] == bundle.split()[1:]
    assert "cache" in bundle
    assert main(["info", "var-d30", "--plan"]) == 0


def test_drafters_are_refused(folder):
    with pytest.raises(ConfigError, match="does not generate token by token"):
        load_pipeline(folder, drafter="jacobi")
    with pytest.raises(ConfigError, match="no drafter"):
        load_pipeline(folder)(class_labels=[0], tree="chain-3")


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "decode", "--checkpoint"],
        ["generate", "--tree", "chain-3", "--checkpoint"],
    ],
)
def test_commands_for_drafts_are_one_line(folder, command, tmp_path, capsys):
    name = "out.png" if command[0] == "generate" else "report"
    assert main([*command, str(folder), "--out", str(tmp_path / name)]) == 2
    assert (
        "does not generate token by token" in capsys.readouterr().err.splitlines()[-1]
    )


def test_other_scales_of_the_tokenizer_are_refused(folder, tmp_path):
    other = save_bundle(tmp_path / "other")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "prior").symlink_to(folder / "prior")
    (tmp_path / "mixed" / "tokenizer").symlink_to(other / "tokenizer")
    with pytest.raises(CheckpointError, match=r"maps of \(1, 2, 4\), the tokenizer"):
        load_bundle(tmp_path / "mixed")
