"""GGUF files of llama.cpp are converted like the weights that they were made from."""

import jax
import numpy as np
import pytest

from jaxspec.convert.reading.gguf.blocks import KINDS
from jaxspec.convert.reading.open import open_source
from jaxspec.errors import ConfigError, DataError
from tests.convert import gguf_files
from tests.convert.gguf_models import (
    metadata,
    neighbors,
    original,
    params_of,
    weights,
)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_file_gives_the_parameters_of_its_original(tmp_path, kind):
    expected = original(tmp_path / "original", model_type=kind)
    order = neighbors if kind == "llama" else lambda name, x: x
    file = tmp_path / "model.gguf"
    tensors = {ours: order(name, x) for name, (ours, x) in weights().items()}
    gguf_files.write(file, metadata(kind), tensors)
    config, params = params_of(file, tmp_path / "bundle")
    assert config.head_size == expected[0].head_size
    assert config.rope_base == expected[0].rope_base == 5000.0
    assert config.norm_eps == pytest.approx(expected[0].norm_eps, rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])
    if kind == "llama":  # control: channels in the original's order
        tensors = {ours: x for _, (ours, x) in weights().items()}
        gguf_files.write(file, metadata(kind), tensors)
        wrong = params_of(file, tmp_path / "wrong")[1]["layers_0"]["attention"]
        right = expected[1]["layers_0"]["attention"]
        assert (wrong["qkv"]["kernel"] != right["qkv"]["kernel"]).any()
        np.testing.assert_array_equal(wrong["out"]["kernel"], right["out"]["kernel"])


def test_blocks_are_a_scale_a_minimum_and_nibbles():
    raw = np.zeros((1, 20), np.uint8)
    raw[0, :4] = np.array([2.0, -1.0], "<f2").view(np.uint8)
    raw[0, 4:] = np.arange(16) | (15 - np.arange(16)) << 4
    low = 2.0 * np.arange(16) - 1
    np.testing.assert_array_equal(KINDS[3].decode(raw)[0], [*low, *low[::-1]])


def test_quantized_tensors_are_read_in_their_shape(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "model.gguf"
    for code, kind in KINDS.items():
        shape = (3, 2 * kind.numbers)
        raw = rng.integers(0, 60, 6 * kind.bytes, np.uint8)
        tensors = {"blk.0.ffn_down.weight": (shape, code, raw.tobytes())}
        gguf_files.write(file, metadata(), tensors)
        stored = open_source(file).tensors["model.layers.0.mlp.down_proj.weight"]
        assert (stored.shape, stored.dtype) == (shape, kind.dtype)
        expected = kind.decode(raw.reshape(6, -1)).reshape(shape)
        np.testing.assert_array_equal(stored.read(), expected)


DAMAGED = {
    "header": (lambda data: data[:40], "ends within its header"),
    "tensors": (lambda data: data[:-64], "ends at byte"),
    "version": (lambda data: data[:4] + b"\1\0\0\0" + data[8:], "version 1"),
    "bytes": (lambda data: data[:4] + b"\0\0\0\3" + data[8:], "another byte order"),
    "entries": (lambda data: data[:8] + b"\xff" * 8 + data[16:], "entries"),
    "text": (lambda data: data[:24] + b"\xff" * 8 + data[32:], "a text of"),
}


@pytest.mark.parametrize("change, message", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused(tmp_path, change, message):
    file = tmp_path / "model.gguf"
    tensors = {ours: x for _, (ours, x) in weights().items()}
    gguf_files.write(file, metadata(), tensors)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        open_source(file)


UNSUPPORTED = {
    "architecture": ({"general.architecture": "mamba"}, {}, "the architecture mamba"),
    "parts": ({"split.count": 3}, {}, "one of 3 parts"),
    "partial": ({"llama.rope.dimension_count": 2}, {}, "rotates a part"),
    "experts": ({"llama.expert_count": 8}, {}, "mixture of experts"),
    "factors": ({}, {"rope_freqs.weight": np.full(2, 8, "<f4")}, "one by one"),
    "encoding": ({}, {"x": ((1, 256), 16, bytes(66))}, "encoding 16"),
}


@pytest.mark.parametrize(
    "changes, extra, message", UNSUPPORTED.values(), ids=UNSUPPORTED
)
def test_what_is_not_supported_is_named(tmp_path, changes, extra, message):
    file = tmp_path / "model.gguf"
    gguf_files.write(file, metadata(**changes), extra)
    with pytest.raises((ConfigError, DataError), match=message):
        open_source(file)
