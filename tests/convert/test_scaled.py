"""Dequantization of float8 weights with scales."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxspec.convert.reading.open import open_source
from jaxspec.errors import DataError
from tests.convert import torch_files

RNG = np.random.default_rng(0)
KINDS = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
FILES = ("model.safetensors", "model.pt")
ROWS, COLUMNS, BLOCK = 5, 7, (2, 3)


def expanded(scale):
    """Returns the factor of every element."""
    result = np.empty((ROWS, COLUMNS), np.float32)
    for i in range(ROWS):
        for j in range(COLUMNS):
            if scale.size == 1:
                result[i, j] = scale.reshape(())
            elif scale.size == ROWS:
                result[i, j] = scale.reshape(-1)[i]
            else:
                result[i, j] = scale[i // BLOCK[0], j // BLOCK[1]]
    return result


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: np.dtype(kind).name)
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale", "scale_weight"])
@pytest.mark.parametrize("shape", [(), (1,), (ROWS,), (ROWS, 1), (3, 3)])
def test_a_weight_is_multiplied_by_its_scale(tmp_path, file, kind, name, shape):
    weight = RNG.normal(size=(ROWS, COLUMNS)).astype(kind)
    scale = np.asarray(RNG.uniform(0.5, 2, shape), np.float32)
    state = {"a.weight": weight, f"a.{name}": scale, "a.bias": np.ones(5, np.float32)}
    state["a.input_scale"] = np.ones(1, np.float32)  # of activations
    torch_files.write(tmp_path / file, state)
    method = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": method}))
    found = open_source(tmp_path / file).tensors
    assert list(found) == ["a.weight", "a.bias"]
    assert found["a.weight"].dtype == np.float32
    expected = weight.astype(np.float32) * expanded(scale)
    np.testing.assert_array_equal(found["a.weight"].read(), expected)


@pytest.mark.parametrize("file", FILES)
def test_a_float8_weight_without_a_scale_is_unchanged(tmp_path, file):
    weight = RNG.normal(size=(2, 3)).astype(ml_dtypes.float8_e4m3fn)
    torch_files.write(tmp_path / file, {"a.weight": weight})
    found = open_source(tmp_path / file).tensors["a.weight"].read()
    assert found.dtype == weight.dtype and found.tobytes() == weight.tobytes()


def test_a_scale_that_does_not_fit_is_refused(tmp_path):
    weight = np.zeros((5, 7), ml_dtypes.float8_e4m3fn)
    state = {"a.weight": weight, "a.weight_scale": np.ones((4, 4), np.float32)}
    torch_files.write(tmp_path / "m.safetensors", state)
    with pytest.raises(DataError, match=r"scale of a.weight \(5, 7\) is \(4, 4\)"):
        open_source(tmp_path / "m.safetensors")


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "fp8"])
@pytest.mark.parametrize("kind", [np.int8, ml_dtypes.float8_e4m3fn])
def test_other_quantized_weights_are_refused_by_name(tmp_path, method, kind):
    torch_files.write(tmp_path / "m.safetensors", {"a.q": np.zeros((4, 4), kind)})
    record = {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"quantized by {method} \(a.q is "):
        open_source(tmp_path)
