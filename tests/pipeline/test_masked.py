"""Masked models in the pipeline: all of its ways."""

import numpy as np
import pytest
from PIL import Image

from jaxspec.checkpoint import Checkpoint, save
from jaxspec.cli import main
from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.masked import Confidence, Guided
from jaxspec.models import Transformer
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.sharding import make_mesh
from tests.models.tiny import random_params
from tests.tiny_bundle import save_bundle, save_masked_bundle

SETTINGS = {"seed": 3, "cfg_scale": 2.5, "steps": 4}
LABELS = [0, 1, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_masked_bundle(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def pipe(folder):
    return load_pipeline(folder)


@pytest.fixture(scope="module")
def drawn(pipe):
    return pipe(class_labels=LABELS, **SETTINGS)


def test_classes_become_images_in_a_few_calls(drawn):
    length = drawn.tokens.shape[1]
    assert (drawn.tokens >= 0).all() and len(drawn.images) == 3
    assert drawn.stats.tokens_per_call == length / 4


def test_every_step_is_a_preview(pipe, drawn):
    previews = list(pipe.stream(class_labels=LABELS, rounds=1, **SETTINGS))
    shares = [preview.fraction for preview in previews]
    assert shares == sorted(set(shares)) and len(shares) == 4 and shares[-1] == 1
    np.testing.assert_array_equal(previews[-1].tokens, drawn.tokens)
    for preview in previews:  # what is known stays
        known = preview.tokens >= 0
        np.testing.assert_array_equal(preview.tokens[known], drawn.tokens[known])


@pytest.mark.slow
def test_a_mesh_makes_the_same_tokens(folder, drawn):
    pipe = load_pipeline(folder, mesh=make_mesh(2, 2))
    out = pipe(class_labels=LABELS, **SETTINGS)
    np.testing.assert_array_equal(out.tokens, drawn.tokens)


@pytest.mark.parametrize(
    "policy", ["random", "halton", "threshold-0.5", "revision-0.5"]
)
def test_policies_have_names(pipe, drawn, policy):
    out = pipe(class_labels=LABELS, **SETTINGS, policy=policy)
    assert (out.tokens >= 0).all() and (out.tokens != drawn.tokens).any()


def test_schedules_have_names(pipe):
    """Numbers of known tokens of 16 after each step: 16 (1 - the share masked)."""
    for schedule, counts in {
        "linear": [4, 8, 12, 16],
        "cosine": [2, 5, 10, 16],
        "arccos": [3, 6, 9, 16],
    }.items():
        settings = {**SETTINGS, "schedule": schedule}
        views = pipe.stream(class_labels=[0], rounds=1, **settings)
        known = [int((view.tokens >= 0).sum()) for view in views]
        assert known == counts, schedule


def test_a_policy_of_one_s_own_goes_through_the_pipeline(pipe):
    named = pipe(class_labels=LABELS, **SETTINGS, policy="likeliest-2")
    own = pipe(class_labels=LABELS, **SETTINGS, policy=Confidence("likeliest", 2.0))
    np.testing.assert_array_equal(own.tokens, named.tokens)
    guided = Guided(Transformer(TransformerConfig(layers=1)))
    with pytest.raises(ConfigError, match="Guided has parameters"):
        pipe(class_labels=LABELS, **SETTINGS, policy=guided)


@pytest.mark.slow
def test_the_command_line_makes_a_sheet_and_a_folder(folder, tmp_path, capsys):
    command = ["generate", "--checkpoint", str(folder), "--steps", "3"]
    sheet = str(tmp_path / "sheet.png")
    assert main([*command, "--num", "4", "--out", sheet]) == 0
    assert Image.open(sheet).size[0] >= 32
    lines = tmp_path / "lines.txt"
    lines.write_text("0\n1\n")
    many = [*command, "--prompts", str(lines), "--out-dir", str(tmp_path / "many")]
    assert main(many) == 0
    assert len(list((tmp_path / "many").rglob("*.png"))) == 2
    assert main([*many, "--policy", "halton"]) == 2
    assert "another policy" in capsys.readouterr().err
    assert main(["info", str(folder), "--plan"]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1000}, "has 16 tokens"),
        ({"policy": "best"}, "no policy 'best'"),
        ({"policy": "threshold-x"}, "from 0 to 1"),
        ({"policy": "random-2"}, "no policy"),
        ({"schedule": "round"}, "choose one of cosine"),
        ({"solver": "ddim"}, "is a setting of MAR"),
        ({"max_new_tokens": 3}, "of an image together"),
        ({"cfg_interval": 3}, "every step is guided"),
        ({"policy": 3}, "no name of a policy"),
        ({"prefix": np.zeros((3, 4), np.int32)}, "in any order"),
        ({"tree": "chain-2"}, "no drafter"),
    ],
)
def test_impossible_settings_are_refused(pipe, settings, message):
    with pytest.raises(ConfigError, match=message):
        pipe(class_labels=LABELS, **settings)


def test_drafters_are_refused(folder):
    with pytest.raises(ConfigError, match="does not generate token by token"):
        load_pipeline(folder, drafter="jacobi")


def test_other_models_have_no_policy(tmp_path):
    pipe = load_pipeline(save_bundle(tmp_path))
    with pytest.raises(ConfigError, match="policy is a setting of masked models"):
        pipe(class_labels=LABELS, policy="halton")


def test_a_masked_model_of_text_fills_in_what_follows_a_prompt(tmp_path):
    """As LLaDA, whose converted files have this form."""
    config = TransformerConfig(
        vocab_size=256,
        layers=1,
        width=16,
        heads=2,
        rope="sequence",
        max_length=40,
        condition="none",
        extra_tokens=1,
    )
    metadata = {"objective": "masked"}
    checkpoint = Checkpoint("prior", config, random_params(config), metadata)
    save(tmp_path / "prior", checkpoint)
    pipe = load_pipeline(tmp_path)
    out = pipe(prompts=["one", "and another"], max_new_tokens=8, steps=4)
    assert out.tokens.shape == (2, 8) and (out.tokens >= 0).all()
    assert out.stats.tokens_per_call == 2
    # Without a limit as much as there is room for, a token a step.
    whole = pipe(prompts=["one"])
    assert whole.tokens.shape == (1, 37) and whole.stats.tokens_per_call == 1
    with pytest.raises(ConfigError, match="no unconditional branch"):
        pipe(prompts=["one"], cfg_scale=3.0)


def test_what_needs_an_order_is_refused(folder, capsys):
    command = ["eval", "prior", "--checkpoint", str(folder), "--data", "cifar10"]
    assert main(command) == 2
    assert "no likelihood in order" in capsys.readouterr().err
