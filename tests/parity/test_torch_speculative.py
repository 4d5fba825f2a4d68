# ruff: noqa: E402
"""The PyTorch loop gives the tokens and calls of the engine in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dataclasses import replace

from jaxspec.bench.baselines.torch_speculative import TorchSpeculative
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.trees.tree import Tree

pytestmark = pytest.mark.parity
CFG_SCALE, LENGTH = 2.0, 256


@pytest.fixture(scope="module")
def models():
    bundle = load_bundle("fruits64")
    return bundle, load_drafter("unmixed", bundle)


@pytest.mark.parametrize("name", ["0,1,00,01,10,000", "chain-4"])
def test_tokens_and_calls_are_those_of_the_engine(models, name):
    bundle, loaded = models
    tree, keys = Tree.named(name), batch_keys(3, 1)
    config, drafter = bundle.prior.config, loaded.drafter
    engine = Engine(Transformer(config).as_target(), LENGTH, drafter, tree)
    variables = engine.variables(target=bundle.prior.params, drafter=loaded.params)
    result = jax.jit(engine.generate)(
        variables,
        jnp.array([32]),
        sampling=Sampling.create(cfg_scale=CFG_SCALE),
        keys=keys,
    )
    positions = 1 + jnp.arange(LENGTH + tree.depth)[None]
    noise = np.asarray(position_noise(keys, positions, config.vocab_size)[0])
    loop = TorchSpeculative(
        config,
        bundle.prior.params,
        drafter.config,
        loaded.params["own"],
        tree,
        CFG_SCALE,
    )
    found = loop.generate(32, noise)
    np.testing.assert_array_equal(found.tokens, np.asarray(result.tokens[0]))
    assert found.calls == int(result.stats.calls[0]) < LENGTH / 1.5
    # The control: drafts of other noise than the target's are accepted less often.
    draft = loop._draft
    loop._draft = lambda root, filled, gumbel: draft(root, filled, gumbel.roll(1, -1))
    other = loop.generate(32, noise)
    np.testing.assert_array_equal(other.tokens, found.tokens)
    assert other.calls > 1.3 * found.calls


def test_other_drafters_are_refused(models):
    bundle, loaded = models
    with pytest.raises(ConfigError, match="plain causal DFlash"):
        TorchSpeculative(
            bundle.prior.config,
            bundle.prior.params,
            replace(loaded.drafter.config, causal=False),
            loaded.params["own"],
            Tree.named("chain-2"),
            CFG_SCALE,
        )
