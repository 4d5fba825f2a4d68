# ruff: noqa: E402
"""Files written by PyTorch and the safetensors package, and the cache of the hub."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from jaxspec.convert.reading.open import open_source
from jaxspec.convert.reading.safetensors import write_safetensors
from jaxspec.errors import DataError
from tests.parity.converting import as_numpy

pytestmark = pytest.mark.parity


def state():
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "plain": torch.randn(3, 5),
        "half": torch.randn(4).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(3, dtype=torch.float64),
        "whole": base,
        "transposed": base.T,
        "part": base[1:5:2, 1:],
        "ids": torch.arange(5),
        "used": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "turns": torch.polar(torch.ones(3), torch.randn(3)),
        "seed": torch.tensor(3, dtype=torch.uint64),
        "eighths": torch.randn(2, 3).to(torch.float8_e4m3fn),
        "wide eighths": torch.randn(4).to(torch.float8_e5m2)[1:3],
    }


def assert_same(loaded, expected):
    assert list(loaded) == list(expected)
    for name, x in expected.items():
        reference, actual = as_numpy(x), loaded[name].read()
        assert (actual.dtype, actual.shape) == (reference.dtype, reference.shape), name
        assert actual.tobytes() == reference.tobytes(), name


def test_every_tensor_of_torch_save_is_read(tmp_path):
    torch.save(state(), tmp_path / "m.pt")
    assert_same(open_source(tmp_path / "m.pt").tensors, state())


def test_a_module_and_its_metadata_are_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "m.ckpt")
    assert_same(open_source(tmp_path / "m.ckpt").tensors, module.state_dict())


def wrapped():
    """Module that is compiled and wrapped for data parallelism."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    inner = torch.compile(module)  # compiled when it is first called: never
    return module, torch.nn.ModuleDict({"module": inner})


def test_the_names_of_compiled_and_parallel_modules_are_those_of_the_module(tmp_path):
    module, outer = wrapped()
    torch.save({"state_dict": outer.state_dict(), "seed": 2**64 - 1}, tmp_path / "m.pt")
    source = open_source(tmp_path / "m.pt")
    assert_same(source.tensors, module.state_dict())
    assert set(source.prefixes) == {"module.", "_orig_mod."}


def test_averaged_models_are_read(tmp_path):
    module, _ = wrapped()
    average = torch.optim.swa_utils.AveragedModel(module)
    contents = {"model": module.state_dict(), "ema": average.state_dict()}
    torch.save(contents, tmp_path / "m.pt")
    assert_same(
        open_source(tmp_path / "m.pt", weights="ema").tensors, module.state_dict()
    )


def test_tied_tensors_are_stored_once_and_found_under_both_names(tmp_path):
    module = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)}
    )
    module["head"].weight = module["embed"].weight
    safetensors_torch.save_model(module, str(tmp_path / "m.safetensors"))
    loaded = open_source(tmp_path / "m.safetensors").tensors
    assert sum(x.alias is not None for x in loaded.values()) == 1
    assert_same(dict(sorted(loaded.items())), dict(sorted(module.state_dict().items())))


def test_the_format_from_before_1_6_is_refused(tmp_path):
    torch.save(state(), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match="from before 1.6"):
        open_source(tmp_path / "m.pt")


def test_tensors_of_other_kinds_are_refused_by_name(tmp_path):
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "m.pt")
    with pytest.raises(DataError, match="_rebuild_sparse_tensor"):
        open_source(tmp_path / "m.pt")


def test_whole_modules_are_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    for lenient in (False, True):
        with pytest.raises(
            DataError, match=r"whole object \(torch\.nn\.modules\.linear\.Linear\)"
        ):
            open_source(tmp_path / "m.pt", allow_objects=lenient)


def test_safetensors_agree_with_its_own_package_both_ways(tmp_path):
    tensors = {k: x.detach().contiguous().clone() for k, x in state().items()}
    safetensors_torch.save_file(tensors, tmp_path / "package.safetensors")
    loaded = open_source(tmp_path / "package.safetensors").tensors
    assert_same({k: loaded[k] for k in tensors}, tensors)
    arrays = {k: as_numpy(x) for k, x in tensors.items()}
    table = [(k, x.shape, x.dtype) for k, x in arrays.items()]
    file = tmp_path / "jaxspec.safetensors"
    write_safetensors(file, table, arrays.__getitem__)
    back = safetensors_torch.load_file(file)
    assert set(back) == set(tensors)
    for name, x in tensors.items():
        assert back[name].dtype == x.dtype and torch.equal(back[name], x)


def cached(root, commit="a" * 40):
    """Repository in the cache layout of huggingface_hub."""
    home = root / "hub" / "models--someone--model"
    folder = home / "snapshots" / commit
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    torch.save({"w": torch.ones(2)}, folder / "model.pt")
    (folder / "config.json").write_text('{"model_type": "x"}')
    return commit


def test_a_repository_comes_from_the_cache_when_offline(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    commit = cached(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for repository in (
        "someone/model",
        f"someone/model@{commit}",
        "someone/model:model.pt",
    ):
        source = open_source(repository)
        assert source.revision == commit and source.config == {"model_type": "x"}
        np.testing.assert_array_equal(source.tensors["w"].read(), [1, 1])
    for missing in ("someone/other", "someone/model@0123456", "someone/model:b.pt"):
        with pytest.raises(DataError, match="cannot be fetched"):
            open_source(missing)
