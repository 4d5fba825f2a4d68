"""Checks of targets: a correct one passes, and each fault is named."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from jaxspec.core.kv_cache import write
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.testing import check_target
from jaxspec.testing.target_contract import target_faults
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.tiny import TARGET, target_params

VOCAB = 7
PARAMS, PROMPT = toy_params(VOCAB, 60), jnp.array([[1, 2, 3], [4, 0, 6]])
GOOD = toy_target(VOCAB)


def attend(params, values, mask):
    features = jnp.where(mask[..., None], values[:, None], 0.0).sum(axis=2)
    return jnp.tanh(features) @ params["head"], features


def broken(shift=0, slot=0, mask=None, lengths=0, layer=0.0):
    """The toy target with a fault in `forward`."""

    def forward(params, cache, tokens, positions, allowed):
        new = params["values"][tokens, positions + shift][:, None]
        k, v = cache.layers[0]
        starts = cache.lengths + slot
        pair = write(k, new, starts), write(v, new, starts)
        size, slots = tokens.shape[1], jnp.arange(cache.capacity)
        if mask == "all":
            allowed = slots[None, None] < (cache.lengths + size)[:, None, None]
            allowed = jnp.broadcast_to(allowed, (len(tokens), size, len(slots)))
        if mask == "slots":  # causal by slot, whatever the tree
            last = cache.lengths[:, None] + jnp.arange(size)[None]
            allowed = slots[None, None] <= last[..., None]
        logits, features = attend(params, pair[1][:, 0], allowed)
        cache = replace(cache, layers=(pair,), lengths=cache.lengths + lengths)
        return logits, features + layer, cache

    return replace(GOOD, forward=forward)


@pytest.mark.variants(1)
@pytest.mark.parametrize("branches", [1, 2])
def test_a_correct_target_passes(branches):
    check_target(toy_target(VOCAB, branches), PARAMS, PROMPT)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [True, False])
def test_a_transformer_passes(cfg):
    model = Transformer(TARGET)
    check_target(model.as_target(cfg=cfg), target_params(), jnp.array([0, 2]))


def later_token(params, prompt, tokens, index):
    return GOOD.rescore(params, prompt, tokens, index + 1)


def transposed(params, prompt, extra):
    """A cache with slots before heads."""
    out = GOOD.prefill(params, prompt, extra)
    layers = tuple((k.swapaxes(1, 2), v.swapaxes(1, 2)) for k, v in out.cache.layers)
    return out._replace(cache=replace(out.cache, layers=layers))


def swapped(params, prompt, extra):
    """The unconditional branch first."""
    out = toy_target(VOCAB, 2).prefill(params, prompt, extra)
    return out._replace(logits=jnp.roll(out.logits, len(prompt), axis=0))


def too_small(params, prompt, extra):
    return GOOD.prefill(params, prompt, extra - 3)


def unmoved(layers, lengths, nodes, path):
    return layers


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (broken(shift=1), "positions of forward are one too large"),
        (broken(shift=-1), "positions of forward are one too small"),
        (broken(slot=1), r"writes two tokens of sequence 0 to slots \[4, 5\]"),
        (broken(mask="all"), "ignores its mask"),
        (broken(mask="slots"), "must attend to its ancestors only"),
        (broken(lengths=1), "changes `cache.lengths`"),
        (broken(layer=1.0), "outputs of the same layers"),
        (replace(GOOD, rescore=later_token), "it returns those of token 2"),
        (replace(GOOD, move=unmoved), "after `move` of an accepted path"),
        (replace(GOOD, prefill=transposed), "give Target a `move` for your layout"),
        (replace(GOOD, prefill=too_small), "the cache has 11"),
        (replace(toy_target(VOCAB, 2), prefill=swapped), "conditional branch comes"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_each_fault_is_named(target, words):
    with pytest.raises(ConfigError, match=words):
        check_target(target, PARAMS, PROMPT)


def test_all_faults_are_listed_at_once():
    faults = list(target_faults(broken(shift=1, layer=1.0), PARAMS, PROMPT))
    assert len(faults) == 2
