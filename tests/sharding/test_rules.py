"""Sharding of parameters over a mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxspec.checkpoint import (
    Checkpoint,
    load_checkpoint,
    named_leaves,
    params_digest,
    save,
)
from jaxspec.cli.options import print_replicated
from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.embedded import CLASSES, embedded_folder
from jaxspec.pipeline.load import load
from jaxspec.sharding import (
    kept_whole,
    make_mesh,
    placement,
    read_mesh,
    spec_of,
)
from tests.models.tiny import random_params


@pytest.mark.variants(2)
@pytest.mark.parametrize("data, model", [(8, 1), (4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("part", ["prior", "drafter", "tokenizer"])
def test_a_checkpoint_is_loaded_onto_a_mesh(part, data, model):
    folder = embedded_folder() / CLASSES / part
    mesh = make_mesh(data, model)
    _, params = load(folder, sharding=placement(mesh))
    whole = load_checkpoint(folder).params
    assert params_digest(params) == params_digest(whole)
    local, total = 0, 0
    for path, x in named_leaves(params):
        spec = spec_of(path, x.shape, dict(mesh.shape))
        assert x.sharding.is_equivalent_to(placement(mesh)(path, x.shape), x.ndim)
        shard = x.addressable_shards[0].data
        parts = model if "model" in spec else 1
        assert shard.size * parts == x.size
        local, total = local + shard.size, total + x.size
    if (
        part == "prior" and model <= 4
    ):  # 4 divides its heads: nearly everything is sharded
        assert local <= 1.1 * total / model


def test_an_axis_that_does_not_divide_is_replicated():
    assert spec_of("a/qkv/kernel", (8, 3, 4, 2), {"model": 8}) == P(None, None, None)
    assert spec_of("a/qkv/kernel", (8, 3, 8, 2), {"model": 8}) == P(None, None, "model")
    assert spec_of("norm/scale", (8,), {"model": 8}) == P()


def test_custom_rules():
    rules = ((r"qkv", P("model", None)), (r".*", P()))
    assert spec_of("a/qkv/kernel", (8, 16), {"model": 2}, rules) == P("model", None)
    with pytest.raises(ConfigError, match="no sharding rule matches norm"):
        spec_of("norm", (8,), {"model": 2}, rules[:1])
    with pytest.raises(ConfigError, match=r"is for 2 axes, but qkv has shape \(8,\)"):
        spec_of("qkv", (8,), {"model": 2}, rules)


def test_meshes_use_the_devices_that_exist():
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(make_mesh(model=4).shape) == {"data": 2, "model": 4}
    assert dict(make_mesh(1, 2).shape) == {"data": 1, "model": 2}
    with pytest.raises(ConfigError, match="needs 16 devices, there are 8"):
        make_mesh(4, 4)
    with pytest.raises(ConfigError, match="at least 1 of each"):
        make_mesh(0, 1)
    assert read_mesh("2x4") == (2, 4)
    for text in ("2", "2x", "x4", "0x4", "2x4x1", "axb"):
        with pytest.raises(ConfigError, match="DATAxMODEL"):
            read_mesh(text)


def test_one_sharding_for_all_parameters():
    folder = embedded_folder() / CLASSES / "prior"
    everywhere = jax.sharding.NamedSharding(make_mesh(), P())
    _, params = load(folder, sharding=everywhere)
    assert all(x.sharding == everywhere for x in jax.tree.leaves(params))
    np.testing.assert_array_equal(
        params["norm"]["scale"], load_checkpoint(folder).params["norm"]["scale"]
    )


@pytest.mark.variants(1)
@pytest.mark.parametrize("source", [None, (8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("target", [None, (2, 4)])
def test_checkpoints_move_between_meshes(tmp_path, source, target):
    """From any mesh to any other, without a copy on a single device."""
    config = TransformerConfig(
        vocab_size=32, layers=1, width=32, heads=8, grid=4, classes=3
    )
    params = random_params(config)
    if source:
        sharding = placement(make_mesh(*source))
        leaves = [
            jax.device_put(x, sharding(path, x.shape))
            for path, x in named_leaves(params)
        ]
        params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    save(tmp_path / "prior", Checkpoint("prior", config, params))
    sharding = placement(make_mesh(*target)) if target else None
    loaded = load_checkpoint(tmp_path / "prior", sharding=sharding)
    assert params_digest(loaded.params) == params_digest(params)
    for path, x in named_leaves(loaded.params):
        if sharding:
            assert x.sharding.is_equivalent_to(sharding(path, x.shape), x.ndim)
        else:
            assert len(x.sharding.device_set) == 1


def test_user_meshes_are_accepted_or_refused():
    explicit = jax.make_mesh((2, 4), ("data", "model"))
    sharding = placement(explicit)("head", (8, 16))
    assert sharding.spec == P(None, "model")
    assert set(sharding.mesh.axis_types) == {jax.sharding.AxisType.Auto}
    with pytest.raises(ConfigError, match="has axes rows, model, but no 'data'"):
        placement(jax.make_mesh((2, 4), ("rows", "model")))
    both = ((r"", P(("data", "model"))),)
    sizes = {"data": 2, "model": 4}
    assert spec_of("x", (6,), sizes, both) == P(None)
    assert spec_of("x", (16,), sizes, both) == P(("data", "model"))


def test_axes_that_do_not_divide_are_reported(capsys):
    shapes = [("a/qkv/kernel", (8, 3, 4, 2)), ("head", (8, 16)), ("norm/scale", (8,))]
    assert kept_whole(shapes, {"model": 8}) == ["a/qkv/kernel"]
    assert kept_whole(shapes, {"model": 4}) == []
    bundle = load_bundle(mesh=make_mesh(1, 8))  # it has 4 heads
    print_replicated(bundle)
    err = capsys.readouterr().err
    assert "qkv/kernel" in err and "do not divide among 8" in err


def test_a_bundle_accepts_custom_rules():
    mesh = make_mesh(2, 4)
    bundle = load_bundle(mesh=mesh, rules=((r"^head$", P("model")), (r"", P())))
    specs = {path: x.sharding.spec for path, x in named_leaves(bundle.prior.params)}
    assert specs.pop("head") == P("model")
    assert all("model" not in spec for spec in specs.values())
