# ruff: noqa: E402
"""The PyTorch loop gives the tokens and calls of the engine in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dataclasses import replace

from jaxspec.bench.baselines.torch_decoder import TorchDecoder
from jaxspec.bench.baselines.torch_dflash import TorchDFlash
from jaxspec.bench.baselines.torch_grid_jacobi import TorchGridJacobi
from jaxspec.bench.baselines.torch_speculative import TorchSpeculative
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.training_free.grid_jacobi import GridJacobi
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.trees.tree import Tree

pytestmark = pytest.mark.parity
CFG_SCALE, LENGTH = 2.0, 256
LABELS = np.array([32, 7, 50])


def make_drafter(loaded, target):
    """The same drafter in PyTorch."""
    if isinstance(loaded.drafter, GridJacobi):
        return TorchGridJacobi(loaded.drafter, target)
    return TorchDFlash(loaded.drafter.config, loaded.params["own"], target)


@pytest.mark.parametrize(
    ("name", "drafter", "tree", "least"),
    [
        ("fruits64", "unmixed", "0,1,00,01,10,000", 1.5),
        ("fruits64", "unmixed", "chain-4", 1.5),
        ("fruits64_halton", "grid-jacobi", "chain-15", 5),
        ("fruits64_halton", "grid-jacobi", "0,1,00,01,10,000", 2),
    ],
)
def test_tokens_and_calls_are_those_of_the_engine(name, drafter, tree, least):
    bundle = load_bundle(name)
    loaded = load_drafter(drafter, bundle)
    tree, keys = Tree.named(tree), batch_keys(3, len(LABELS))
    config, params = bundle.prior.config, bundle.prior.params
    engine = Engine(Transformer(config).as_target(), LENGTH, loaded.drafter, tree)
    variables = engine.variables(target=params, drafter=loaded.params)
    result = jax.jit(engine.generate)(
        variables,
        jnp.asarray(LABELS),
        sampling=Sampling.create(cfg_scale=CFG_SCALE),
        keys=keys,
    )
    positions = jnp.tile(1 + jnp.arange(LENGTH + tree.depth), (len(LABELS), 1))
    noise = np.asarray(position_noise(keys, positions, config.vocab_size))
    target = TorchDecoder(config, params, 1, 0, scale=CFG_SCALE)
    twin = make_drafter(loaded, target)
    loop = TorchSpeculative(target, twin, tree)
    found = loop.generate(LABELS, noise)
    np.testing.assert_array_equal(found.tokens, np.asarray(result.tokens))
    # A near-tie, which the loop does not score again, may end a path early.
    apart = np.abs(found.calls - np.asarray(result.stats.calls))
    assert (apart <= np.asarray(result.stats.rescored)).all()
    assert found.calls.mean() < LENGTH / least and len(set(found.calls)) > 1
    # A sequence does not depend on the others.
    alone = loop.generate(LABELS[1:2], noise[1:2])
    np.testing.assert_array_equal(alone.tokens, found.tokens[1:2])
    assert alone.calls == found.calls[1]
    # The control: drafts of other noise than the target's are accepted less often.
    draft = twin.draft
    twin.draft = lambda tree, roots, index, gumbel: draft(
        tree, roots, index, gumbel.roll(1, -1)
    )
    other = loop.generate(LABELS, noise)
    np.testing.assert_array_equal(other.tokens, found.tokens)
    assert other.calls.mean() > 1.3 * found.calls.mean()


def test_other_drafters_and_trees_are_refused():
    bundle = load_bundle("fruits64")
    loaded = load_drafter("unmixed", bundle)
    prior = bundle.prior
    target = TorchDecoder(prior.config, prior.params, 1, 0)
    config, own = loaded.drafter.config, loaded.params["own"]
    with pytest.raises(ConfigError, match="plain causal DFlash"):
        TorchDFlash(replace(config, causal=False), own, target)
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), prior.params)
    with pytest.raises(ConfigError, match="float32 target"):
        TorchDFlash(config, own, TorchDecoder(prior.config, short, 1, 0))
    drafter = TorchDFlash(config, own, target)
    with pytest.raises(ConfigError, match="at most 256 nodes"):
        TorchSpeculative(target, drafter, Tree.named("chain-256"))
    loop = TorchSpeculative(target, drafter, Tree.named("chain-9"))
    with pytest.raises(ConfigError, match="9 levels, the drafter makes 8"):
        loop.generate(LABELS, np.zeros((3, LENGTH + 9, 1024), np.float32))
