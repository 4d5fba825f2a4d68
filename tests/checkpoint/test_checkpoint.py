"""Checkpoints of models, and bundles."""

import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import (
    Checkpoint,
    load_checkpoint,
    params_digest,
    read_config,
    save,
)
from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.errors import CheckpointError, ConfigError, NonFiniteError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import (
    load_bundle,
    resolve_classes,
)
from jaxspec.pipeline.embedded import embedded_folder
from jaxspec.pipeline.manifest import check_manifest, write_manifest
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.tokenizers.vqgan.model import Tokenizer

TOKENIZER_CONFIG = TokenizerConfig(
    image_size=8,
    patch_size=4,
    channels=4,
    multipliers=(1,),
    encoder_blocks=1,
    decoder_blocks=1,
    groups=2,
    latent_channels=4,
    codebook_size=16,
    code_dim=4,
)
CONFIG = TransformerConfig(vocab_size=8, layers=1, width=16, heads=2, grid=2, classes=2)


@pytest.fixture
def saved(tmp_path):
    params = Transformer(CONFIG).init(jax.random.key(0))
    save(tmp_path / "prior", Checkpoint("prior", CONFIG, params, {"note": "x"}))
    return tmp_path / "prior", params


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_round_trip_is_bit_exact(tmp_path, dtype):
    params = Transformer(CONFIG).init(jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    save(tmp_path / "a", Checkpoint("prior", CONFIG, params, {"classes": ["x"]}))
    back = load_checkpoint(tmp_path / "a", "prior")
    metadata = {"classes": ["x"], "digest": params_digest(params)}
    assert back.config == CONFIG and back.metadata == metadata
    chex.assert_trees_all_equal(back.params, params)
    chex.assert_trees_all_equal_dtypes(back.params, params)


def test_a_save_replaces_and_a_killed_save_does_not(saved, monkeypatch):
    path, params = saved
    changed = jax.tree.map(lambda x: x + 1, params)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxspec.checkpoint.models.write_pytree", die)
    with pytest.raises(KeyboardInterrupt):
        save(path, Checkpoint("prior", CONFIG, changed))
    monkeypatch.undo()
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(path).params, params)
    assert [p.name for p in path.parent.iterdir()] == ["prior"]
    save(path, Checkpoint("prior", CONFIG, changed))
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(path).params, changed)
    assert [p.name for p in path.parent.iterdir()] == ["prior"]


def edit_config(path, **changes):
    file = path / "config.json"
    record = json.loads(file.read_text())
    record["config"] |= changes
    file.write_text(json.dumps(record))


def test_all_shape_mismatches_are_in_one_message(saved):
    edit_config(saved[0], width=32, layers=2)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(saved[0])
    text = str(error.value)
    assert "missing" in text and "layers_1" in text and "instead of" in text
    assert len(text) < 900 and "\n" not in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: shutil.rmtree(p), "no checkpoint folder"),
        (lambda p: (p / "config.json").unlink(), "has no config.json"),
        (lambda p: (p / "config.json").write_text("{"), "damaged or not a jaxspec"),
        (lambda p: edit_config(p, wings=2), "unknown field"),
        (lambda p: shutil.rmtree(p / "params"), "incomplete"),
        (lambda p: (p / "params" / "_METADATA").write_text("{"), "damaged"),
    ],
)
def test_damaged_checkpoints_raise_a_clear_error(saved, damage, words):
    damage(saved[0])
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(saved[0])


def test_truncated_files_never_give_wrong_values(saved):
    """Halves each file, one at a time: loading fails, or returns the right values."""
    path, params = saved
    errors = 0
    for file in sorted((path / "params").rglob("*")):
        if not file.is_file() or file.stat().st_size < 2:
            continue
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        try:
            back = load_checkpoint(path).params
        except CheckpointError:
            errors += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, back, params)
        file.write_bytes(whole)
    assert errors >= 2


def test_nan_weights_are_refused_by_name(tmp_path):
    params = Transformer(CONFIG).init(jax.random.key(0))
    params["head"] = params["head"].at[0, 0].set(jnp.nan)
    save(tmp_path / "p", Checkpoint("prior", CONFIG, params))
    with pytest.raises(NonFiniteError, match="parameter head holds NaN"):
        load_checkpoint(tmp_path / "p")


@pytest.fixture
def with_neighbors(tmp_path):
    params = Tokenizer(TOKENIZER_CONFIG).init(jax.random.key(0))
    table = neighbor_table(params["codebook"], 5)
    path = tmp_path / "tokenizer"
    save(path, Checkpoint("tokenizer", TOKENIZER_CONFIG, params, neighbors=table))
    return path, table


def test_neighbors_are_loaded_as_saved(with_neighbors):
    path, table = with_neighbors
    back = load_checkpoint(path, "tokenizer").neighbors
    assert back.most == 5
    chex.assert_trees_all_equal(back, table)
    chex.assert_trees_all_equal_dtypes(back, table)
    (path / "neighbors.npz").unlink()
    assert load_checkpoint(path).neighbors is None


@pytest.mark.parametrize("size", [0, 10, 400])
def test_truncated_neighbors_are_refused(with_neighbors, size):
    file = with_neighbors[0] / "neighbors.npz"
    whole = file.read_bytes()
    assert len(whole) > size
    file.write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="neighbors.npz' is damaged"):
        load_checkpoint(with_neighbors[0])


def test_neighbors_that_are_not_an_archive_are_refused(with_neighbors):
    with open(with_neighbors[0] / "neighbors.npz", "wb") as file:
        np.save(file, np.zeros((16, 6)))
    with pytest.raises(CheckpointError, match="neighbors.npz' is damaged"):
        load_checkpoint(with_neighbors[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda ids, far: {"ids": ids[:-1], "distances": far[:-1]},
        lambda ids, far: {"ids": ids, "distances": far[:, 1:]},
        lambda ids, far: {"ids": ids[:, 0], "distances": far[:, 0]},
        lambda ids, far: {"ids": ids + 1, "distances": far},
        lambda ids, far: {"ids": ids.astype(np.int32) - 1, "distances": far},
        lambda ids, far: {"ids": ids, "distances": -far},
        lambda ids, far: {"ids": ids, "distances": far * np.nan},
        lambda ids, far: {"ids": ids},
        lambda ids, far: {"ids": ids.astype(object), "distances": far},
    ],
    ids="codes columns flat high low negative nan missing objects".split(),
)
def test_neighbors_of_another_codebook_are_refused(with_neighbors, change):
    path = with_neighbors[0]
    with np.load(path / "neighbors.npz") as arrays:
        arrays = change(arrays["ids"], arrays["distances"])
    np.savez_compressed(path / "neighbors.npz", **arrays)
    with pytest.raises(
        CheckpointError, match="damaged, or not the table of a codebook of 16"
    ) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and "delete it" in str(error.value)


def test_kind_and_format_are_checked(saved):
    with pytest.raises(CheckpointError, match="holds a prior, not a tokenizer"):
        load_checkpoint(saved[0], "tokenizer")
    file = saved[0] / "config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        read_config(saved[0])


def test_unwritable_paths_raise_a_clear_error(tmp_path):
    params = Transformer(CONFIG).init(jax.random.key(0))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "file" / "prior", Checkpoint("prior", CONFIG, params))


def test_the_manifest_detects_missing_and_changed_files(tmp_path):
    (tmp_path / "b" / "prior").mkdir(parents=True)
    file = tmp_path / "b" / "prior" / "x"
    file.write_text("one")
    write_manifest(tmp_path)
    check_manifest(tmp_path / "b")
    file.write_text("two")
    with pytest.raises(CheckpointError, match="'.*x' is damaged"):
        check_manifest(tmp_path / "b")
    file.unlink()
    with pytest.raises(CheckpointError, match="'.*x' is missing"):
        check_manifest(tmp_path / "b")


def test_the_embedded_checkpoint_is_complete_small_and_documented():
    folder = embedded_folder()
    bundle = load_bundle("fruits64")  # checks every digest
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 64e6
    listed = json.loads((folder / "manifest.json").read_text())
    present = {f.relative_to(folder).as_posix() for f in files} - {"manifest.json"}
    assert set(listed) == present
    for part in ("tokenizer", "prior", "drafter"):
        card = (folder / bundle.name / part / "README.md").read_text()
        assert "CC BY-SA 4.0" in card and "Mihai Oltean" in card
        assert getattr(bundle, part).metadata["license"] == "CC BY-SA 4.0"
    metrics = bundle.tokenizer.metadata["metrics"]
    assert metrics["psnr"] >= 30 and metrics["codes_used"] >= 0.75
    assert len(bundle.class_names) == 67


def test_the_embedded_folder_is_in_the_repository():
    assert embedded_folder() == Path(__file__).parents[2] / "checkpoints"


def test_classes_by_name_and_number():
    bundle = load_bundle("fruits64")
    names = bundle.class_names
    assert resolve_classes(bundle, [names[3].lower(), " 5"]) == [3, 5]
    with pytest.raises(ConfigError, match="unknown class 'Pear'.*0 to 66"):
        resolve_classes(bundle, ["Pear"])
    with pytest.raises(ConfigError, match="unknown class '67'"):
        resolve_classes(bundle, ["67"])
