"""Removal of the prefixes that training wrappers add to tensor names."""

import numpy as np
import pytest

from jaxspec.checkpoint import load_checkpoint, params_digest, save
from jaxspec.convert.conversion import convert, prepare
from jaxspec.convert.export import export
from jaxspec.convert.reading.open import open_source
from jaxspec.errors import ConfigError, DataError
from tests.convert import models, torch_files

SETTINGS = {"heads": 4, "grid": 4}


def with_fsdp(name):
    """Returns a name under FSDP with activation checkpointing of each layer."""
    wrapped = "_fsdp_wrapped_module._checkpoint_wrapped_module."
    parts = name.split(".")
    if parts[0] != "layers":
        return f"_fsdp_wrapped_module.{name}"
    return f"_fsdp_wrapped_module.layers.{parts[1]}.{wrapped}{'.'.join(parts[2:])}"


WRAPPED = {
    "data parallel": (lambda n: f"module.{n}", ("module.",)),
    "compiled": (lambda n: f"_orig_mod.{n}", ("_orig_mod.",)),
    "both": (lambda n: f"module._orig_mod.{n}", ("_orig_mod.", "module.")),
    "both, the other way": (
        lambda n: f"_orig_mod.module.{n}", ("_orig_mod.", "module.")),
    "layers compiled": (
        lambda n: n.replace("attention.", "attention._orig_mod."), ("_orig_mod.",)),
    "FSDP": (with_fsdp, ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")),
    "Fabric": (lambda n: f"_forward_module.{n}", ("_forward_module.",)),
    "Lightning": (lambda n: f"model.{n}", ("model.",)),
    "Lightning, compiled": (
        lambda n: f"model._orig_mod.{n}", ("_orig_mod.", "model.")),
    "another attribute": (lambda n: f"net.gpt.{n}", ("net.gpt.",)),
}  # fmt: skip


@pytest.mark.variants(10)
@pytest.mark.parametrize("name", ["m.pt", "m.ckpt", "m.safetensors"])
@pytest.mark.parametrize("wrap, prefixes", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("family", [None, "llamagen"])
def test_wrapped_names_are_restored(tmp_path, name, wrap, prefixes, family):
    state = models.released(tmp_path / "model")
    wrapped = {wrap(key): x for key, x in state.items()}
    contents = {"state_dict": wrapped} if name == "m.ckpt" else wrapped
    torch_files.write(tmp_path / name, contents)
    [found] = prepare(tmp_path / name, tmp_path / "b", given=SETTINGS, family=family)
    assert found.source.tensors.keys() == state.keys()
    assert set(found.source.prefixes) == set(prefixes)
    assert found.family.name == "llamagen"


def test_the_summary_lists_removed_prefixes(tmp_path):
    state = models.released(tmp_path / "model")
    wrapped = {f"model.module.{key}": x for key, x in state.items()}
    torch_files.save(tmp_path / "m.ckpt", {"state_dict": wrapped})
    [written] = convert(tmp_path / "m.ckpt", tmp_path / "b", given=SETTINGS)
    assert "removed from names: model.module." in written.remarks
    params = load_checkpoint(written.folder).params
    assert params_digest(params) == params_digest(models.prior().params)


def test_prefixes_of_a_released_layout_are_kept(tmp_path):
    """LANTERN's layout has the prefix "model."; Lightning adds another."""
    save(tmp_path / "mine", models.prior(models.CAPTIONS))
    export(tmp_path / "mine", tmp_path / "out", "llamagen-hf")
    [found] = prepare(tmp_path / "out", tmp_path / "b")
    assert found.source.prefixes == ()
    tensors = open_source(tmp_path / "out/model.safetensors").tensors
    wrapped = {f"model.{name}": x.read() for name, x in tensors.items()}
    torch_files.save(tmp_path / "m.ckpt", {"state_dict": wrapped})
    [found] = prepare(tmp_path / "m.ckpt", tmp_path / "b", given=SETTINGS)
    assert (found.family.name, found.source.prefixes) == ("llamagen-hf", ("model.",))


def test_tensors_beside_the_model_are_refused(tmp_path):
    state = models.released(tmp_path / "model")
    wrapped = {f"model.{key}": x for key, x in state.items()}
    wrapped["loss.weight"] = np.ones(2, np.float32)
    torch_files.save(tmp_path / "m.ckpt", {"state_dict": wrapped})
    with pytest.raises(ConfigError, match=r"not mapped to a parameter: loss.weight"):
        prepare(tmp_path / "m.ckpt", tmp_path / "b", given=SETTINGS)


def test_a_tensor_with_and_without_a_prefix_is_refused(tmp_path):
    state = {"w": np.ones(2, np.float32), "_orig_mod.w": np.ones(2, np.float32)}
    torch_files.save(tmp_path / "m.pt", state)
    with pytest.raises(DataError, match="w exists with and without"):
        open_source(tmp_path / "m.pt")
