"""The study of masked models: each of its ways generates."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from docs.studies import masked as study
from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.pipeline.bundle import load_bundle
from tests.models.tiny import random_params
from tests.tiny_bundle import save_masked_bundle


@pytest.mark.slow
def test_every_way_makes_whole_images_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "BLOCK", 8)
    monkeypatch.setattr(study, "STEPS", (2, 4))
    masked = load_bundle(save_masked_bundle(tmp_path))
    config = replace(masked.prior.config, extra_tokens=0)
    params = random_params(config)
    prior = replace(masked.prior, config=config, params=params, metadata={})
    bundle = replace(masked, prior=prior)
    models = {"masked": masked.prior, "distilled": masked.prior}
    ways = list(study.all_ways(bundle, models, 2.0))
    assert {way.family for way in ways} == set(study.FAMILIES)
    assert len({way.name for way in ways}) == len(ways)
    settings = {"sampling": Sampling.create(cfg_scale=2.0), "keys": batch_keys(0, 2)}
    found = {}
    for way in ways:
        run = jax.jit(generate, static_argnums=0)
        out = run(way.generator, way.variables, jnp.array([0, 2]), **settings)
        assert (np.asarray(out.tokens) >= 0).all(), way.name
        found[way.name] = out.tokens.tobytes()
    del found["distilled, 2 steps"], found["distilled, 4 steps"]  # the same model
    assert len(set(found.values())) > len(found) - 4
