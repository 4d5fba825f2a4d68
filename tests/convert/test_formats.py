"""Detection of file formats by content, not by name."""

import json

import numpy as np
import pytest

from jaxspec.convert.reading.open import open_source
from jaxspec.errors import DataError
from tests.convert import torch_files

STATE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
NAMES = ("model.safetensors", "model.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "weights", "m.01"])
@pytest.mark.parametrize("written_as", NAMES)
@pytest.mark.parametrize("by_folder", [False, True])
def test_the_format_is_detected_by_content(tmp_path, written_as, name, by_folder):
    torch_files.write(tmp_path / written_as, STATE)
    (tmp_path / written_as).rename(tmp_path / name)
    (tmp_path / "README").write_text("About the model.")
    (tmp_path / "config.json").write_text("{}")
    source = open_source(tmp_path if by_folder else tmp_path / name)
    np.testing.assert_array_equal(source.tensors["w"].read(), STATE["w"])


def test_a_shard_of_an_index_may_have_any_name(tmp_path):
    torch_files.write(tmp_path / "m.safetensors", STATE)
    (tmp_path / "m.safetensors").rename(tmp_path / "first")
    index = tmp_path / "model.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "first"}}))
    assert list(open_source(tmp_path).tensors) == ["w"]


OTHERS = {
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
    "NumPy": (b"\x93NUMPY\1\0v\0", "a NumPy array"),
}


@pytest.mark.parametrize("content, message", OTHERS.values(), ids=OTHERS)
def test_other_kinds_of_files_are_named(tmp_path, content, message):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path)
