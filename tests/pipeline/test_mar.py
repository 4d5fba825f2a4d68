"""Models over continuous tokens in the pipeline: all of its ways."""

import numpy as np
import pytest
from PIL import Image

from jaxspec.cli import main
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.sharding import make_mesh
from tests.tiny_bundle import save_mar_bundle, save_next_scale_bundle

SETTINGS = {"seed": 3, "cfg_scale": 2.5, "steps": 4, "head_steps": (4, 2)}
LABELS = ["apple", "plum", 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_mar_bundle(tmp_path_factory.mktemp("mar"))


@pytest.fixture(scope="module")
def pipe(folder):
    return load_pipeline(folder)


@pytest.fixture(scope="module")
def drawn(pipe):
    return pipe(class_labels=LABELS, **SETTINGS)


def test_class_names_become_images(drawn):
    assert drawn.tokens.shape == (3, 16, 4) and np.isfinite(drawn.tokens).all()
    assert drawn.images[0].size == (16, 16)
    assert drawn.stats.tokens_per_call == 4  # four steps of 16 tokens


def test_every_step_is_a_preview(pipe, drawn):
    previews = list(pipe.stream(class_labels=LABELS, rounds=1, **SETTINGS))
    shares = [preview.fraction for preview in previews]
    assert shares == sorted(set(shares)) and len(shares) == 4 and shares[-1] == 1
    np.testing.assert_allclose(previews[-1].tokens, drawn.tokens, rtol=1e-5, atol=1e-5)
    first = previews[0].images
    assert (first == first[0, 0, 0]).all(axis=-1).mean() > 0.5  # gray cells


@pytest.mark.slow
def test_a_mesh_makes_the_same_tokens(folder, drawn):
    pipe = load_pipeline(folder, mesh=make_mesh(2, 2))
    out = pipe(class_labels=LABELS, **SETTINGS)
    np.testing.assert_allclose(out.tokens, drawn.tokens, rtol=1e-4, atol=1e-4)


def test_images_become_tokens(pipe, drawn):
    tokens = pipe.encode(drawn.images)
    assert tokens.shape == (3, 16, 4) and tokens.dtype == np.float32


@pytest.mark.slow
def test_the_command_line_makes_a_sheet_and_a_folder(folder, tmp_path, capsys):
    command = ["generate", "--checkpoint", str(folder), "--steps", "3"]
    command += ["--head-steps", "4-2", "--solver", "ddim"]
    sheet = str(tmp_path / "sheet.png")
    assert main([*command, "--num", "4", "--out", sheet]) == 0
    assert Image.open(sheet).size[0] >= 32
    lines = tmp_path / "lines.txt"
    lines.write_text("apple\nplum\n")
    many = [*command, "--prompts", str(lines), "--out-dir", str(tmp_path / "many")]
    assert main(many) == 0
    assert len(list((tmp_path / "many").rglob("*.png"))) == 2
    # Other steps make other images: the folder is not continued with them.
    many[many.index("4-2")] = "4"
    assert main(many) == 2
    capsys.readouterr()
    assert main(["info", str(folder), "--plan"]) == 0
    assert "weights" in capsys.readouterr().out
    assert main(["info", "mar-b", "--plan"]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tree": "chain-3"}, "no drafter"),
        ({"top_k": 3}, "no vocabulary"),
        ({"steps": 17}, "steps=17"),
        ({"head_steps": (1, 1)}, "head_steps=1"),
        ({"head_steps": (4, 3, 2)}, "of the first step and of the last"),
        ({"head_steps": 1001}, "head_steps=1001"),
        ({"prefix": np.zeros((3, 4), np.int32)}, "any order"),
        ({"max_new_tokens": 3}, "makes all 16 tokens"),
    ],
)
def test_impossible_settings_are_one_line(pipe, settings, message):
    with pytest.raises(ConfigError, match=message):
        pipe(class_labels=LABELS, **{**SETTINGS, **settings})


def test_drafters_are_refused(folder, capsys):
    with pytest.raises(ConfigError, match="does not generate token by token"):
        load_pipeline(folder, drafter="jacobi")
    assert main(["generate", "--checkpoint", str(folder), "--head-steps", "x"]) == 2
    assert "write 50, or 50-5" in capsys.readouterr().err


def test_steps_are_for_masked_models(tmp_path):
    pipe = load_pipeline(save_next_scale_bundle(tmp_path))
    with pytest.raises(ConfigError, match="steps is a setting of masked models"):
        pipe(class_labels=[0], steps=4)


def test_another_tokenizer_is_refused(folder, tmp_path):
    other = save_next_scale_bundle(tmp_path / "other")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "prior").symlink_to(folder / "prior")
    (tmp_path / "mixed" / "tokenizer").symlink_to(other / "tokenizer")
    with pytest.raises(CheckpointError, match="vectors of 4 channels"):
        load_bundle(tmp_path / "mixed")
