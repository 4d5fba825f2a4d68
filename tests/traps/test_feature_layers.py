"""Layers of the target that a drafter reads."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.models.transformer.model import Transformer
from jaxspec.nn.layers import RMSNorm
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from tests.models.tiny import TINY, random_params


def test_feature_layers_are_outputs_of_layers():
    """Feature layer i is the input of the last norm in a model of i + 1 layers."""
    params, config = random_params(TINY), TINY
    tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6, 5]])
    label = jnp.array([2])

    def score(config, **options):
        own = {
            k: x
            for k, x in params.items()
            if not k.startswith("layers_") or int(k[7:]) < config.layers
        }
        model = Transformer(config)
        return jax.jit(partial(model.score, **options))(own, label, tokens)

    _, features = score(config, feature_layers=(0, 1))
    for layer, own in enumerate(jnp.split(features, 2, axis=-1)):
        logits, _ = score(replace(config, layers=layer + 1))
        norm = RMSNorm(config.norm_eps).apply({"params": params["norm"]}, own)
        np.testing.assert_allclose(norm @ params["head"], logits, atol=1e-5)


@dataclass(frozen=True)
class FromAllLayers:
    """Block drafter with all layers of the target; "feature_layers" is a parameter."""

    inner: DFlash

    def chosen(self, params, features):
        layers = jnp.stack(jnp.split(features, self.inner.target.layers, -1), axis=-2)
        own = layers[..., params["feature_layers"], :]
        return own.reshape(*features.shape[:-1], -1)

    def init(self, params, ctx):
        ctx = replace(ctx, features=self.chosen(params, ctx.features))
        return self.inner.init(params["inner"], ctx)

    def propose(self, params, state, ctx):
        return self.inner.propose(params["inner"], state, ctx)

    def observe(self, params, state, result):
        result = replace(result, features=self.chosen(params, result.features))
        return self.inner.observe(params["inner"], state, result)


@pytest.mark.slow
def test_wrong_feature_layers_lower_the_acceptance():
    """Tokens do not depend on the features, only the number of calls does."""
    bundle, rows = load_bundle("fruits64"), 16
    inner, prior = bundle.drafter.model, bundle.prior
    every = tuple(range(inner.target.layers))
    target = Transformer(prior.config).as_target(cfg=True, feature_layers=every)
    drafter, order = FromAllLayers(inner), ("temperature",)
    engine = Engine(target, 64, drafter, Tree.chain(2), order=order, tie_margin=0.0)
    run, prompt = jax.jit(engine.generate), jnp.arange(0, 4 * rows, 4)
    sampling, keys = Sampling.create(rows, cfg_scale=2.0), batch_keys(0, rows)
    bound = inner.with_target_params(bundle.drafter.params, prior.params)

    def with_layers(feature_layers):
        params = {"inner": bound, "feature_layers": jnp.array(feature_layers)}
        out = run(Variables(prior.params, params), prompt, sampling=sampling, keys=keys)
        return out.tokens, float(out.lengths.sum() / out.stats.calls.sum())

    feature_layers = inner.config.feature_layers
    tokens, good = with_layers(feature_layers)
    for wrong in (tuple(layer - 1 for layer in feature_layers), feature_layers[::-1]):
        same, bad = with_layers(wrong)
        np.testing.assert_array_equal(same, tokens)
        assert bad < good - 0.05
