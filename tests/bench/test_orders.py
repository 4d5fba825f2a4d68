"""The study of orders: its nats and its calls are those of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from docs.studies.orders import PARTS, _calls, entropy_of
from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig
from jaxspec.core.sampling import Sampling
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts
from jaxspec.speculative.trees.tree import Tree
from tests.params import random_like

CONFIG = TransformerConfig(
    vocab_size=7, layers=1, width=16, heads=2, grid=4, classes=3, next_cell=True
)
MODEL = Transformer(CONFIG)
PARAMS = random_like(MODEL.init, spread=0.5, seed=1)
CLASSES, SCALE, TEMPERATURE = jnp.array([0, 2]), 3.0, 0.8
SOME = (0, 6, 15)  # tokens of which the entropy is computed by hand


def entropy_by_hand(tokens, scale=SCALE):
    """Entropies of some tokens, each of a pass over the tokens before it."""
    result = []
    for index in SOME:
        with_class, without = (
            np.asarray(
                MODEL.score(
                    PARAMS, CLASSES, tokens[:, :index], null=jnp.full(len(tokens), null)
                )[0][:, -1],
                np.float64,
            )
            for null in (False, True)
        )
        logits = (without + scale * (with_class - without)) / TEMPERATURE
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        result.append(-(p * np.log(p)).sum(axis=-1))
    return np.stack(result, axis=1)


def test_entropies_are_those_of_the_guided_distribution_of_each_token():
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 7)
    sampling = Sampling.create(2, cfg_scale=SCALE, temperature=TEMPERATURE)
    actual = entropy_of(MODEL, PARAMS, tokens, CLASSES, sampling)
    actual = np.asarray(actual)[:, SOME]
    np.testing.assert_allclose(actual, entropy_by_hand(tokens), atol=1e-4)
    assert np.abs(actual - entropy_by_hand(tokens, scale=1.0)).max() > 0.1


@pytest.mark.parametrize("tree", [Tree.root(), Tree.chain(3)], ids=["plain", "chain"])
def test_calls_are_those_of_the_rest_of_each_image(tree):
    bundle = Bundle("random", None, Checkpoint("prior", CONFIG, PARAMS, {}), None)
    prompts, config = Prompts.from_classes([0, 2]), GenerationConfig(batch_size=2)
    own = load_drafter("jacobi", bundle)
    run = generate(bundle, prompts, config, tree, loaded=own)
    calls = _calls(bundle, prompts, config, tree, own, run.tokens)
    assert calls[0] == run.calls.mean()
    if tree.size == 1:  # a call for each token
        assert calls == [16 * (PARTS - part) / PARTS for part in range(PARTS)]
    else:
        assert calls == sorted(calls, reverse=True)
        assert calls[0] < 16
