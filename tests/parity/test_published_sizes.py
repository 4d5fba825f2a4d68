# ruff: noqa: E402
"""Parameter counts of the published models, without allocating parameters."""

import jax
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxspec.models.transformer import model as transformer
from jaxspec.models.transformer.presets import preset
from jaxspec.tokenizers.vqgan import model as tokenizer
from tests.parity.llamagen_twin import CaptionCondition, ClassCondition, LlamaGen

pytestmark = pytest.mark.parity

# Millions, as published or as counted in the released code.
DECODERS = {
    ("gpt-b", "class"): 110.9,
    ("gpt-l", "class"): 342.9,
    ("gpt-xl", "class"): 774.7,
    ("gpt-xl", "caption"): 777.7,
    ("gpt-xxl", "class"): 1411,
    ("gpt-xxxl", "class"): 3890,
    ("gpt-1b", "class"): 1200,
    ("gpt-3b", "class"): 3097,
    ("gpt-7b", "class"): 6610,
}
TOKENIZERS = {"vq-16": (71.88, 343), "vq-8": (70.1, 299)}


def sizes(init):
    shapes = jax.eval_shape(init, jax.random.key(0))
    return sorted(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_have_the_published_tensors(name):
    config = tokenizer.PRESETS[name]
    with torch.device("meta"):
        model = transformers.JanusVQVAE(
            transformers.JanusVQVAEConfig(channel_multiplier=list(config.multipliers))
        )
    actual = sizes(tokenizer.Tokenizer(config).init)
    assert actual == sorted(x.numel() for x in model.state_dict().values())
    millions, tensors = TOKENIZERS[name]
    assert len(actual) == tensors
    assert sum(actual) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name, condition", DECODERS)
def test_decoders_have_the_published_tensors(name, condition):
    config = preset(name, condition)
    with torch.device("meta"):
        model = LlamaGen(
            vocab=16384,
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            grid=16,
            condition=ClassCondition(1000, config.width)
            if condition == "class"
            else CaptionCondition(120, 2048, config.width),
        )
    state = model.state_dict()
    joined = {
        key: x.numel() for key, x in state.items() if "feed_forward.w3" not in key
    }
    for key in joined:
        if "feed_forward.w1" in key:
            joined[key] *= 2
    actual = sizes(transformer.Transformer(config).init)
    assert actual == sorted(joined.values())
    assert sum(actual) / 1e6 == pytest.approx(DECODERS[name, condition], rel=2e-3)
