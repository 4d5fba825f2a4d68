"""Paths and options as people write them."""

import os
from dataclasses import replace

import pytest

import jaxspec
from jaxspec.cli import main
from jaxspec.data.dataset import ImageDataset
from jaxspec.errors import ConfigError
from jaxspec.train.from_images import describe, experiment_for
from tests.tiny_bundle import save_bundle

DATASET = ImageDataset("photos", 2700, 64, ("cat", "dog"), False, lambda side: None)


@pytest.fixture(scope="module")
def working(tmp_path_factory):
    """Working folder of a training, with its result in `checkpoint/`."""
    folder = tmp_path_factory.mktemp("runs") / "fruit"
    save_bundle(folder / "checkpoint")
    return folder


def test_a_path_may_go_up(working, monkeypatch):
    (working.parent / "elsewhere").mkdir()
    monkeypatch.chdir(working.parent / "elsewhere")
    path = os.path.join("..", "fruit")
    assert jaxspec.load_pipeline(path).bundle.name == "fruit"
    jaxspec.load_pipeline(path).save(os.path.join("..", "copy"))
    assert jaxspec.load_pipeline(os.path.join("..", "copy")).bundle.name == "copy"


def test_info_takes_the_working_folder(working, capsys):
    assert main(["info", str(working)]) == 0
    assert capsys.readouterr().out.startswith("fruit\n\ntokenizer: ")


def test_options_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--class", "3"])
    assert stop.value.code == 2 and "--class" in capsys.readouterr().err


def test_a_folder_of_other_models_is_named():
    captioned = experiment_for(DATASET, "cpu").prior
    with pytest.raises(ConfigError, match="has classes; choose another --out"):
        experiment_for(DATASET, "cpu", prior=replace(captioned, condition="caption"))


def test_held_out_images_and_captions_are_printed():
    experiment = experiment_for(DATASET, "cpu")
    text = describe(experiment, replace(DATASET, heldout=300))
    assert "2700 to train on, 300 held out, 2 classes (cat, dog)" in text
    text = describe(experiment, replace(DATASET, heldout=300, captioned=True))
    assert "2700 to train on, 300 held out, with captions" in text
