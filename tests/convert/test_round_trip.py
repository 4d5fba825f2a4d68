"""Export to a released layout and conversion back, bit for bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import load_checkpoint, params_digest, save
from jaxspec.convert.conversion import convert
from jaxspec.convert.export import EXPORTS, export
from jaxspec.convert.reading.open import open_source
from jaxspec.convert.recognition import families_of
from jaxspec.errors import ConfigError
from tests.convert import models

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
CASES = {
    "llamagen, classes": (models.prior, "llamagen", {}),
    "llamagen, captions": (models.prior, "llamagen", {"config": models.CAPTIONS}),
    "LANTERN's layout": (models.prior, "llamagen-hf", {"config": models.CAPTIONS}),
    "eagle1": (models.feature_head, "eagle1", {"version": 1}),
    "eagle1, own table": (
        models.feature_head, "eagle1", {"version": 1, "own_embedding": True}),
    "eagle3": (models.feature_head, "eagle3", {"version": 3}),
    "eagle3, some tokens": (
        models.feature_head, "eagle3", {"version": 3, "draft_vocab": 16}),
    "eagle3, all tokens": (
        models.feature_head, "eagle3", {"version": 3, "draft_vocab": 40}),
    "eagle3, narrower": (
        models.feature_head, "eagle3",
        {"version": 3, "draft_vocab": 16, "width": 16, "own_embedding": True}),
    "dflash": (models.block_drafter, "dflash", {}),
}  # fmt: skip


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.variants(3)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("make, family, options", CASES.values(), ids=CASES)
def test_a_round_trip_is_bit_exact(tmp_path, make, family, options, dtype):
    checkpoint = make(dtype=dtype, **options)
    if checkpoint.kind != "prior":
        save(tmp_path / "back/prior", models.prior(dtype=dtype))
    save(tmp_path / "checkpoint", checkpoint)
    file = export(tmp_path / "checkpoint", tmp_path / "exported", family)
    assert families_of(open_source(file.parent))[0].name == family
    [written] = convert(tmp_path / "exported", tmp_path / "back")
    found = load_checkpoint(written.folder)
    assert (found.kind, found.config) == (checkpoint.kind, checkpoint.config)
    assert found.target == checkpoint.target
    same(found.params, checkpoint.params)
    assert written.digest == params_digest(checkpoint.params)
    again = export(written.folder, tmp_path / "again", family)
    assert again.read_bytes() == file.read_bytes()


def test_every_exported_family_is_tested():
    assert {family for _, family, _ in CASES.values()} == set(EXPORTS)


def test_a_drafter_belongs_to_the_target_it_was_converted_for(tmp_path):
    target = models.prior()
    save(tmp_path / "b/prior", target)
    save(tmp_path / "checkpoint", models.block_drafter())
    export(tmp_path / "checkpoint", tmp_path / "exported", "dflash")
    [written] = convert(tmp_path / "exported", tmp_path / "b")
    metadata = load_checkpoint(written.folder).metadata
    assert metadata["target_digest"] == params_digest(target.params)
    with pytest.raises(ConfigError, match="convert its target first"):
        convert(tmp_path / "exported", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_checkpoints_that_a_family_cannot_represent_are_not_exported(tmp_path):
    save(tmp_path / "checkpoint", models.block_drafter())
    with pytest.raises(ConfigError, match="only decoders over a grid"):
        export(tmp_path / "checkpoint", tmp_path / "exported", "llamagen")
    with pytest.raises(ConfigError, match="cannot be exported; .*llamagen"):
        export(tmp_path / "checkpoint", tmp_path / "exported", "qwen3")
    assert not (tmp_path / "exported").exists()


def test_a_config_that_contradicts_the_shapes_is_refused(tmp_path):
    save(tmp_path / "checkpoint", models.prior(models.CAPTIONS))
    export(tmp_path / "checkpoint", tmp_path / "exported", "llamagen-hf")
    file = tmp_path / "exported/config.json"
    record = json.loads(file.read_text())
    record.pop("jaxspec")
    file.write_text(json.dumps({**record, "hidden_size": 64}))
    with pytest.raises(ConfigError, match="hidden_size is 64 in config.json"):
        convert(tmp_path / "exported", tmp_path / "b")
