"""Memory plans equal the bytes that devices hold."""

import jax
import pytest

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.presets import preset
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.embedded import CLASSES, embedded_folder
from jaxspec.pipeline.memory_plan import DEVICES, plan_memory
from jaxspec.sharding import make_mesh, placement


@pytest.mark.variants(1)
@pytest.mark.parametrize("data, model", [(1, 1), (4, 2), (2, 4), (1, 8)])
def test_planned_weights_are_the_bytes_on_a_device(data, model):
    config = load_bundle("fruits64").prior.config
    folder = embedded_folder() / CLASSES / "prior"
    mesh = make_mesh(data, model)
    params = load_checkpoint(folder, sharding=placement(mesh)).params
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    plan = plan_memory(config, sizes=dict(mesh.shape), batch=data, itemsize=4)
    assert plan.weights == held


@pytest.mark.parametrize("guided", [True, False])
def test_the_planned_cache_is_that_of_a_prefill(guided):
    prior = load_bundle("fruits64").prior
    target = Transformer(prior.config).as_target(cfg=guided)
    prompts = jax.numpy.arange(3)
    layers = jax.eval_shape(
        lambda p: target.prefill(p, prompts, 256 + 58).cache.layers, prior.params
    )
    held = sum(x.size * 4 for x in jax.tree.leaves(layers))
    sizes = {"data": 1, "model": 1}
    plan = plan_memory(prior.config, sizes=sizes, batch=3, itemsize=4, cfg=guided)
    assert plan.cache == held


def test_a_large_model_is_planned_without_memory(capsys):
    """7B: 13.2 GB of weights in bfloat16, a quarter of them on four devices."""
    plan = plan_memory(preset("gpt-7b"), sizes={"data": 1, "model": 1}, batch=16)
    assert plan.weights == pytest.approx(2 * 6.61e9, rel=0.01)
    assert plan.fits() == {name: name != "TPU v5e" for name in DEVICES}
    assert main(["info", "gpt-7b", "--plan", "--mesh", "2x4", "--batch", "16"]) == 0
    out = capsys.readouterr().out
    assert "gpt-7b on 2x4 devices, batch 16" in out and "TPU v5e    fits" in out
    assert main(["info", "--plan", "--mesh", "8x1", "--batch", "4"]) == 2
    assert "leaves devices idle" in capsys.readouterr().err
    assert main(["info", "--plan", "--batch", "4"]) == 0
    assert "drafter" in capsys.readouterr().out
