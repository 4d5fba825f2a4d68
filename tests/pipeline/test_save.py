"""Saved pipelines, and pipelines of repositories of the hub."""

import shutil
import sys
from types import ModuleType

import numpy as np
import pytest

import jaxspec
from jaxspec.errors import CheckpointError, ConfigError, DataError
from jaxspec.pipeline.embedded import CLASSES, embedded_folder

FOLDER = embedded_folder() / CLASSES


def tokens_of(pipe):
    return pipe(class_labels=[0], seed=0, max_new_tokens=24).tokens


@pytest.mark.slow
def test_a_saved_pipeline_is_loaded_with_its_drafter(tmp_path):
    """In the dtype that it had, which need not be that of the original."""
    pipe = jaxspec.load_pipeline(dtype="bfloat16")
    pipe.save(tmp_path / "copy")
    again = jaxspec.load_pipeline(tmp_path / "copy")
    assert again.loaded.name == pipe.loaded.name
    assert again.class_names == pipe.class_names
    np.testing.assert_array_equal(tokens_of(again), tokens_of(pipe))


def test_a_quantized_pipeline_is_not_saved(tmp_path):
    with pytest.raises(ConfigError, match="in int8; load it without"):
        jaxspec.load_pipeline(int8=True).save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository, and what was asked of it."""
    asked, module = [], ModuleType("huggingface_hub")

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        if repo != "someone/fruits":
            raise OSError("404 Client Error")
        return str(shutil.copytree(FOLDER, tmp_path / "cache", dirs_exist_ok=True))

    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_repository_of_the_hub_is_a_pipeline(hub):
    pipe = jaxspec.load_pipeline("hf://someone/fruits@v1")
    assert hub == [("someone/fruits", "v1", ["*"])]
    assert pipe.class_names == jaxspec.load_pipeline("fruits64").class_names


def test_a_repository_that_cannot_be_fetched_is_one_sentence(hub, monkeypatch):
    with pytest.raises(DataError, match="cannot be fetched from the hub: 404"):
        jaxspec.load_pipeline("hf://someone/else")
    with pytest.raises(CheckpointError, match="write hf://OWNER/NAME"):
        jaxspec.load_pipeline("hf://fruits")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"jaxspec-decoding\[hub\]"):
        jaxspec.load_pipeline("hf://someone/fruits")
