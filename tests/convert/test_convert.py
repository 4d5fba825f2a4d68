"""Conversion of whole models: results, errors, interruption and storage."""

import json

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from jaxspec.checkpoint import load_checkpoint, params_digest, save, save_leaves
from jaxspec.cli import convert as command
from jaxspec.cli import main
from jaxspec.convert.conversion import convert, prepare
from jaxspec.convert.export import export
from jaxspec.convert.families import FAMILIES
from jaxspec.convert.params import build_params
from jaxspec.convert.reading.safetensors import write_safetensors
from jaxspec.errors import ConfigError, NonFiniteError
from tests.convert import models, torch_files


@pytest.fixture
def released(tmp_path):
    """Returns the arrays of a LlamaGen model in the released layout, by name."""
    return models.released(tmp_path / "model")


def write(file, state):
    table = [(name, x.shape, x.dtype) for name, x in state.items()]
    write_safetensors(file, table, state.__getitem__)
    return file


SETTINGS = {"heads": 4, "grid": 4}


def test_a_released_file_is_converted(tmp_path, released):
    torch_files.save(tmp_path / "c2i_B_256.pt", released)
    [written] = convert(tmp_path / "c2i_B_256.pt", tmp_path / "b", given=SETTINGS)
    found = load_checkpoint(tmp_path / "b/prior")
    assert (found.config.kv_heads, found.config.ffn_size) == (2, 48)
    assert params_digest(found.params) == params_digest(models.prior().params)
    assert found.metadata["family"] == "llamagen"
    assert written.tensors == len(released)


def test_settings_that_cannot_be_inferred_are_required(tmp_path, released):
    file = write(tmp_path / "model.safetensors", released)
    with pytest.raises(
        ConfigError, match=r"heads and the side .*--set heads=NUMBER --set grid=NUMBER"
    ):
        convert(file, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"16, 24 or 32.*--set grid="):
        convert(file, tmp_path / "b", given={"heads": 4})
    angles = np.zeros((1 + 16, 4, 2), np.float32)  # some files contain the table
    file = write(tmp_path / "model.safetensors", {**released, "freqs_cis": angles})
    [found] = prepare(file, tmp_path / "b", given={"heads": 4})
    assert found.plan.config.grid == 4


def test_one_error_lists_all_mismatches(tmp_path, released):
    first = "layers.0.attention.wo.weight"
    state = {k: v for k, v in released.items() if k != first}
    state["layers.7.attention.wo.weight"] = released[first]
    state["something.else"] = released[first]
    file = write(tmp_path / "m.safetensors", state)
    with pytest.raises(ConfigError) as error:
        convert(file, tmp_path / "b", given=SETTINGS)
    text = str(error.value)
    assert "layers.7.attention.wo.weight, something.else" in text
    assert f"missing: layers_0/attention/out/kernel ({first})" in text


def test_wrong_shapes_are_refused_before_weights_are_read(tmp_path, released):
    name = "layers.1.feed_forward.w2.weight"
    state = {**released, name: released[name][:, :-1]}
    file = write(tmp_path / "m.safetensors", state)
    with pytest.raises(ConfigError, match=r"ffn/down/kernel should be \(48, 32\), but"):
        prepare(file, tmp_path / "b", given=SETTINGS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, released, bad):
    released["norm.weight"] = released["norm.weight"].copy()
    released["norm.weight"][3] = bad
    file = write(tmp_path / "m.safetensors", released)
    with pytest.raises(NonFiniteError, match=r"norm.weight holds NaN or infinity"):
        convert(file, tmp_path / "b", given=SETTINGS)
    assert not (tmp_path / "b/prior").exists()


def test_weights_that_do_not_fit_the_dtype_are_refused(tmp_path, released):
    released["norm.weight"] = released["norm.weight"] + np.float32(1e6)
    file = write(tmp_path / "m.safetensors", released)
    with pytest.raises(NonFiniteError, match="does not fit into float16"):
        convert(file, tmp_path / "b", given=SETTINGS, dtype="float16")
    convert(file, tmp_path / "b", given=SETTINGS, dtype="bfloat16")
    assert (
        load_checkpoint(tmp_path / "b/prior").params["head"].dtype == ml_dtypes.bfloat16
    )


@pytest.mark.parametrize("kind", [np.int32, np.complex64], ids=lambda k: k.__name__)
def test_integer_and_complex_weights_are_refused(tmp_path, released, kind):
    released["norm.weight"] = released["norm.weight"].astype(kind)
    file = write(tmp_path / "m.safetensors", released)
    with pytest.raises(ConfigError, match=f"norm.weight holds {kind.__name__}"):
        convert(file, tmp_path / "b", given=SETTINGS)


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_a_complex_buffer_is_ignored(tmp_path, released, name):
    angles = np.zeros((1 + 16, 4), np.complex64)
    file = tmp_path / name
    torch_files.write(file, {**released, "freqs_cis": angles})
    [found] = prepare(file, tmp_path / "b", given={"heads": 4})
    assert found.plan.config.grid == 4


def test_an_interrupted_conversion_leaves_the_bundle_unchanged(tmp_path, released):
    file = write(tmp_path / "m.safetensors", released)

    def interrupted(conversion):
        def stop(count):
            raise KeyboardInterrupt

        return stop

    for before in (None, 1.0):
        with pytest.raises(KeyboardInterrupt):
            convert(file, tmp_path / "b", given=SETTINGS, progress=interrupted)
        files = [f for f in (tmp_path / "b").rglob("*") if f.is_file()]
        if before is None:
            assert files == []
            convert(file, tmp_path / "b", given=SETTINGS)
        else:
            assert load_checkpoint(tmp_path / "b/prior").config.heads == 4


def test_the_size_of_parts_does_not_change_the_checkpoint(tmp_path, released):
    file = write(tmp_path / "m.safetensors", released)
    [conversion] = prepare(file, tmp_path / "b", given=SETTINGS)
    checkpoint = models.prior()
    for size, parts in ((1 << 30, 0), (1, len(conversion.entries)), (9000, None)):
        folder = tmp_path / f"by {size}"
        save_leaves(
            folder, build_params(conversion), lambda: checkpoint, part_bytes=size
        )
        found = list((folder / "params").glob("part_*"))
        assert parts is None or len(found) == parts
        same = params_digest(load_checkpoint(folder, "prior").params)
        assert same == params_digest(checkpoint.params)


def test_a_dry_run_prints_a_table_and_writes_nothing(tmp_path, released, capsys):
    file = write(tmp_path / "m.safetensors", released)
    command = ["convert", str(file), str(tmp_path / "b"), "--set", "heads=4"]
    assert main([*command, "--set", "grid=4", "--dry-run"]) == 0
    out = capsys.readouterr().out
    row = "| layers_0/ffn/gate_up/kernel | 32 x 2 x 48 | float32 | "
    row += "layers.0.feed_forward.w1.weight + layers.0.feed_forward.w3.weight | layer |"
    assert row in out and not (tmp_path / "b").exists()
    assert main([*command, "--set", "grid=4", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "llamagen, " in out and "parameters" in out and "digest" in out
    assert main([*command, "--set", "grid"]) == 2
    assert "not of the form KEY=VALUE" in capsys.readouterr().err
    assert main(["convert", str(file), str(tmp_path / "b"), "--family", "gpt"]) == 2
    assert "no family 'gpt'; choose one of dflash" in capsys.readouterr().err


def test_an_unknown_model_is_refused(tmp_path):
    file = write(tmp_path / "m.safetensors", {"x": np.ones(2, np.float32)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match=r"no known family .*x.*mamba.*--family"):
        convert(file, tmp_path / "b")


def test_a_mesh_determines_how_parameters_are_stored(tmp_path, released):
    """A quarter of a matrix, the shard of one of 4 devices, is stored as one chunk."""
    file = write(tmp_path / "m.safetensors", released)
    command = ["convert", str(file), str(tmp_path / "b"), "--set", "heads=4"]
    command += ["--set", "grid=4", "--mesh"]
    assert main([*command, "2x4"]) == 0
    folder = tmp_path / "b/prior/params"
    assert chunk_shape(folder, "layers_0.ffn.gate_up.kernel") == [32, 2, 12]
    assert chunk_shape(folder, "layers_0.ffn.down.kernel") == [12, 32]
    found = load_checkpoint(tmp_path / "b/prior")
    assert params_digest(found.params) == params_digest(models.prior().params)
    assert main([*command, "2by4"]) == 2


def chunk_shape(folder, name):
    """Returns the shape of the chunks in which an array is stored."""
    base = {"driver": "file", "path": f"{folder}/"}
    store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    array = ts.open({"driver": "zarr", "kvstore": store}).result()
    return list(array.chunk_layout.read_chunk.shape)


def test_unknown_settings_are_refused(tmp_path, released):
    file = write(tmp_path / "m.safetensors", released)
    with pytest.raises(
        ConfigError, match=r"--set gird, haeds: .* accepts .*grid, heads"
    ):
        prepare(file, tmp_path / "b", given={**SETTINGS, "haeds": 4, "gird": 4})
    for value in (1.5, "x", -4):
        with pytest.raises(ConfigError, match="is no whole number"):
            prepare(file, tmp_path / "b", given={**SETTINGS, "grid": value})


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "x"},
        {"num_attention_heads": 4, "rms_norm_eps": None},
        {"num_attention_heads": 4, "block_size": -4},
        {"num_attention_heads": 4, "block_size": 17},
        {"num_attention_heads": 4, "rope_theta": "abc"},
        {"jaxspec": {"layers": 10_000_000}},
        {"jaxspec": {"layers": "two"}},
        {"jaxspec": 3},
    ],
    ids=str,
)
def test_invalid_configs_are_refused(tmp_path, released, config):
    file = write(tmp_path / "m.safetensors", released)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError):
        prepare(file, tmp_path / "b", given={"grid": 4})


def test_other_files_are_not_replaced(tmp_path, released):
    """Neither the source, nor a folder that is no checkpoint."""
    folder = tmp_path / "b/prior"
    folder.mkdir(parents=True)
    write(folder / "model.safetensors", released)
    (folder / "deep").mkdir()
    inner = write(folder / "deep/m.safetensors", released)
    for source in (folder, folder / "model.safetensors", inner):
        with pytest.raises(ConfigError, match="would replace the source"):
            convert(source, tmp_path / "b", given=SETTINGS)
    with pytest.raises(ConfigError, match="is no checkpoint of jaxspec"):
        convert(
            write(tmp_path / "m.safetensors", released), tmp_path / "b", given=SETTINGS
        )
    assert (folder / "model.safetensors").is_file()
    save(tmp_path / "own/prior", models.prior())
    before = (tmp_path / "own/prior/config.json").read_text()
    with pytest.raises(ConfigError, match="export into another folder"):
        export(tmp_path / "own/prior", tmp_path / "own/prior", "llamagen")
    assert (tmp_path / "own/prior/config.json").read_text() == before


def test_the_help_of_the_command_lists_all_families():
    assert set(command.FAMILIES.split(", ")) == set(FAMILIES)
