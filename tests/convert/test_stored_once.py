"""Tensors with several names, of which a file may store only one."""

import numpy as np
import pytest

from jaxspec.checkpoint import load_checkpoint
from jaxspec.convert.conversion import convert
from jaxspec.convert.reading.open import open_source
from jaxspec.convert.reading.safetensors import write_safetensors
from tests.convert import torch_files

RNG = np.random.default_rng(0)
TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def text_encoder():
    """Returns the tensors of T5's encoder with one layer, without the embedding."""
    block = "encoder.block.0.layer."
    attention = f"{block}0.SelfAttention."
    shapes = {f"{attention}{x}.weight": (16, 16) for x in "qkvo"}
    shapes |= {f"{attention}relative_attention_bias.weight": (8, 4)}
    shapes |= {f"{block}{i}.layer_norm.weight": (16,) for i in range(2)}
    shapes |= {f"{block}1.DenseReluDense.wi_{i}.weight": (24, 16) for i in range(2)}
    shapes |= {f"{block}1.DenseReluDense.wo.weight": (16, 24)}
    shapes |= {"encoder.final_layer_norm.weight": (16,)}
    return {name: RNG.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def test_aliases_are_in_the_metadata(tmp_path):
    state = {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    table = [(name, x.shape, x.dtype) for name, x in state.items()]
    notes = {"embed.weight": "head.weight", "format": "pt", "made": "by hand"}
    write_safetensors(tmp_path / "m.safetensors", table, state.__getitem__, notes)
    found = open_source(tmp_path / "m.safetensors").tensors
    assert list(found) == ["head.weight", "embed.weight"]
    np.testing.assert_array_equal(found["embed.weight"].read(), state["head.weight"])


@pytest.mark.parametrize("names", [(t,) for t in TABLES] + [TABLES])
def test_t5_has_one_table_under_any_of_its_names(tmp_path, names):
    table = RNG.normal(size=(20, 16)).astype(np.float32)
    state = {**text_encoder(), **dict.fromkeys(names, table)}
    torch_files.write(tmp_path / "m.safetensors", state)
    convert(tmp_path / "m.safetensors", tmp_path / "b")
    found = load_checkpoint(tmp_path / "b/text_encoder").params
    np.testing.assert_array_equal(found["embedding"], table)
