# ruff: noqa: E402
"""HMAR against a PyTorch twin, by files of the released layout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.next_scale import NextScaleVariables, one_model
from jaxspec.tokenizers.multi_scale.scales import QUANTIZER
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.hmar_twin import HMAR
from tests.parity.random_weights import randomized
from tests.parity.var_twin import VAR, Tokenizer

pytestmark = pytest.mark.parity

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
STEPS = {1: (1, 3), 2: (1, 1, 2, 5)}
LENGTH, CODES, WIDTH, CLASSES = 680, 40, 8, 7
SETTINGS = {"top_k": 30, "top_p": 0.9, "cfg_scale": 2.5}


@pytest.fixture(scope="module")
def tokenizer():
    return randomized(Tokenizer(32, (1, 2), 1, CODES, WIDTH, SCALES), seed=1)


@pytest.fixture(scope="module")
def twin():
    return randomized(HMAR(CODES, WIDTH, 1, 2, 48, 4, SCALES, CLASSES), seed=2)


@pytest.fixture(scope="module")
def transformer():
    return randomized(VAR(CODES, WIDTH, 1, 48, 4, SCALES, CLASSES), seed=5)


@pytest.fixture(scope="module")
def model(twin):
    return converted(twin.state_dict())


@pytest.fixture(scope="module")
def scales(tokenizer):
    """Functions between token maps and features, and their parameters."""
    ours = converted(tokenizer.state_dict())
    return ours.model.scales, {k: ours.params[k] for k in QUANTIZER}


def test_sizes_are_read_from_the_file(model):
    config = model.config
    assert (config.layers, config.mask_layers, config.attends) == (3, 2, "own")
    assert config.scales == SCALES
    assert "generation" not in model.metadata  # no published model has 3 layers


def test_a_file_of_the_first_stage_attends_to_its_own_map(transformer):
    """Its names are those of VAR; the mask distinguishes them."""
    tensors = dict(transformer.state_dict())
    assert converted(tensors).config.attends == "earlier"
    level = tensors["lvl_1L"][0]
    own = torch.where(level[:, None] == level[None], 0.0, -torch.inf)
    tensors["attn_bias_for_masking"] = own[None, None]
    assert converted(tensors).config.attends == "own"


def test_a_file_of_the_masked_pass_alone_is_refused(transformer):
    tensors = dict(transformer.state_dict())
    tensors["mask_embed.weight"] = torch.zeros(1, 48)
    with pytest.raises(ConfigError, match="masked maps alone.*both passes"):
        converted(tensors)


def test_logits_of_both_passes_are_equal(tokenizer, twin, model, scales):
    tokens = torch.randint(0, CODES, (2, LENGTH), generator=torch.manual_seed(3))
    classes, vectors = torch.tensor([2, CLASSES]), tokenizer.inputs(tokens)
    ours, params = scales
    inputs = ours.inputs(params, as_jax(tokens))
    logits = jax.jit(model.model.score)(model.params, as_jax(classes), inputs)
    assert_close(logits, twin(classes, vectors), 1e-4)
    masked = torch.rand(2, 16, generator=torch.manual_seed(4)) < 0.5
    here = slice(14, 30)
    own = tokenizer.down(tokenizer.added(tokens[:, here], 3), 4)
    own = own.flatten(2).transpose(1, 2)
    assert_close(ours.own(params, as_jax(tokens)[:, here], 3), own, 1e-4)
    expected = twin.refine(classes, vectors[:, 13:29], own, masked, 3)
    condition = model.model.condition(model.params, as_jax(classes), jnp.zeros(2, bool))
    refine = partial(model.model.refine, model.params, condition)
    run = jax.jit(partial(refine, first=3, last=4))
    found = run(inputs[:, here], as_jax(own), as_jax(masked))
    assert_close(found, expected, 1e-4)
    other = run(inputs[:, here], as_jax(own), ~as_jax(masked))
    assert np.abs(np.asarray(other) - expected.numpy()).max() > 1e-2


def sampled(logits, noise):
    """Tokens of filtered logits, and their probabilities, as published."""
    logits = logits.masked_fill(logits < logits.topk(30, -1)[0][..., -1:], -torch.inf)
    ordered, index = logits.sort(dim=-1)
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - 0.9
    drop[..., -1] = False
    drop = torch.zeros_like(drop).scatter(-1, index, drop)
    logits = logits.masked_fill(drop, -torch.inf)
    ids = (logits + noise).argmax(-1)
    return ids, logits.softmax(-1).gather(-1, ids[..., None])[..., 0]


def drawn(twin, tokenizer, classes, keys, *, most=False, guided=False):
    """Tokens that the published sampler draws, with our noise.

    Args:
      most: whether the most certain tokens are masked, a fault.
      guided: whether refinement is guided, a fault.
    """

    def noise(start, count):
        at = jnp.broadcast_to(start + jnp.arange(count), (len(classes), count))
        return torch.tensor(np.asarray(position_noise(keys, at, CODES)))

    null, tokens = (
        torch.full_like(classes, CLASSES),
        torch.zeros(len(classes), 0).long(),
    )
    for k, side in enumerate(SCALES):
        start, count = tokens.shape[1], side * side
        rest = torch.zeros(len(classes), LENGTH - start, dtype=torch.long)
        inputs = tokenizer.inputs(torch.cat([tokens, rest], dim=1))
        t = 1.5 * k / (len(SCALES) - 1)
        here = slice(start, start + count)
        logits = (1 + t) * twin(classes, inputs) - t * twin(null, inputs)
        ids, certain = sampled(logits[:, here], noise(start, count))
        steps = STEPS.get(k, (count,))
        index = torch.arange(count).expand(len(classes), -1)
        for step in range(1, len(steps)):
            order = certain.gather(1, index).argsort(dim=1, descending=most)
            index = index.gather(1, order[:, : sum(steps[step:])])
            masked = torch.zeros_like(ids, dtype=torch.bool).scatter(1, index, True)
            own = tokenizer.down(tokenizer.added(ids, k), side)
            own = own.flatten(2).transpose(1, 2)
            refine = partial(
                twin.refine, vectors=inputs[:, start - 1 : start - 1 + count], own=own,
                masked=masked, scale=k,
            )  # fmt: skip
            logits = refine(classes)
            if guided:
                logits = (1 + t) * logits - t * refine(null)
            new, found = sampled(logits, noise(start + step * LENGTH, count))
            ids, certain = (
                torch.where(masked, a, b) for a, b in ((new, ids), (found, certain))
            )
        tokens = torch.cat([tokens, ids], dim=1)
    return tokens.numpy()


def test_a_whole_generation_is_that_of_the_published_sampler(
    tokenizer, twin, model, scales
):
    classes, keys = torch.tensor([2, 5, 0, 1]), batch_keys(4, 4)
    functions, params = scales
    generator = one_model(model.model, functions)
    variables = NextScaleVariables((model.params,), params)
    out = jax.jit(partial(generator.generate, variables))(
        as_jax(classes), sampling=Sampling.create(**SETTINGS), keys=keys
    )
    expected = drawn(twin, tokenizer, classes, keys)
    assert (np.asarray(out.tokens) == expected).mean() > 0.999
    assert (out.stats.calls == 10 + 1 + 3).all()
    for fault in ({"most": True}, {"guided": True}):
        other = drawn(twin, tokenizer, classes, keys, **fault)
        assert (np.asarray(out.tokens) == other).mean() < 0.9, fault


def test_stacks_of_unequal_depth_are_refused(twin):
    state = {k: v for k, v in twin.state_dict().items() if "mask_blocks.1." not in k}
    with pytest.raises(ConfigError, match="2 last layers and 1 for masked maps"):
        converted(state)
