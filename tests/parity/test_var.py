# ruff: noqa: E402
"""VAR and its tokenizer against a PyTorch twin, by files of the released layout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.core.logits import mass_thresholds
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.next_scale import NextScaleVariables, collaborative, one_model
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.random_weights import randomized
from tests.parity.var_twin import VAR, Faults, Tokenizer

pytestmark = pytest.mark.parity

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
LENGTH, CODES, WIDTH, CLASSES = 680, 40, 8, 7
FAULTS = {
    "gates last": Faults(gates=True),
    "smoothed resizing": Faults(antialias=True),
    "the next scale's convolution": Faults(shifted=True),
    "codes by cosine": Faults(normalized=True),
}


@pytest.fixture(scope="module")
def tokenizer():
    return randomized(Tokenizer(32, (1, 2), 1, CODES, WIDTH, SCALES), seed=1)


@pytest.fixture(scope="module", params=[False, True], ids=["own", "shared"])
def transformer(request):
    sizes = (CODES, WIDTH, 3, 48, 4, SCALES, CLASSES)
    model = randomized(VAR(*sizes, shared=request.param), seed=2)
    with torch.no_grad():  # factors of cosines on both sides of their limit
        for block in model.blocks:
            block.attn.scale_mul_1H11.copy_(
                torch.tensor([1.0, 2.0, 4.0, 6.0]).reshape(1, 4, 1, 1)
            )
    return model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, CODES, (2, LENGTH), generator=torch.manual_seed(3))


@pytest.fixture(scope="module")
def ours(tokenizer):
    return converted(tokenizer.state_dict())


def test_sizes_and_scales_are_read_from_the_files(tokenizer, transformer, ours):
    assert ours.kind == "multi_scale_tokenizer" and ours.config.scales == SCALES
    assert ours.config.image_size == 32 and ours.config.networks.encoder_blocks == 1
    model = converted(transformer.state_dict())
    assert model.kind == "next_scale" and model.config.scales == SCALES
    assert model.config.shared_modulation == transformer.shared
    assert model.metadata["generation"]["top_k"] == 900


def test_images_become_the_same_tokens(tokenizer, ours):
    images = torch.rand(2, 3, 32, 32, generator=torch.manual_seed(0)) * 2 - 1
    x = as_jax(images).transpose(0, 2, 3, 1)
    features = jax.jit(ours.model.embed)(ours.params, x)
    expected = tokenizer.quant_conv(tokenizer.encoder(images))
    assert_close(features, expected.permute(0, 2, 3, 1), 1e-4)
    found = np.asarray(jax.jit(ours.model.encode)(ours.params, x))
    assert (found == tokenizer.encode(images).numpy()).mean() > 0.999
    for name in ("smoothed resizing", "the next scale's convolution"):
        other = tokenizer.encode(images, FAULTS[name]).numpy()
        assert (found == other).mean() < 0.95, name
    other = tokenizer.encode(images, FAULTS["codes by cosine"]).numpy()
    assert (found == other).mean() < 0.95


@pytest.mark.parametrize("count", [1, 4, 10])
def test_every_number_of_scales_is_an_image(tokenizer, ours, tokens, count):
    end = sum(s * s for s in SCALES[:count])
    found = jax.jit(ours.model.decode)(ours.params, as_jax(tokens)[:, :end])
    expected = tokenizer.decode(tokens, count).permute(0, 2, 3, 1)
    assert_close(found, expected, 1e-4)
    for name in ("smoothed resizing", "the next scale's convolution"):
        if count > 1:  # a map of one token is constant however it is resized
            other = tokenizer.decode(tokens, count, FAULTS[name]).permute(0, 2, 3, 1)
            assert abs(np.asarray(found) - other.numpy()).max() > 1e-3, name


def test_inputs_and_logits_are_equal(tokenizer, transformer, ours, tokens):
    model = converted(transformer.state_dict())
    expected = tokenizer.inputs(tokens)
    inputs = ours.model.scales.inputs(ours.params, as_jax(tokens))
    assert_close(inputs[:, 1:], expected, 1e-4)
    classes = torch.tensor([2, CLASSES])
    logits = jax.jit(model.model.score)(model.params, as_jax(classes), inputs)
    assert_close(logits, transformer(classes, expected), 1e-4)
    for name in ("gates last",):
        other = transformer(classes, expected, FAULTS[name]).numpy()
        assert abs(np.asarray(logits) - other).max() > 1e-2, name
    other = transformer(classes, tokenizer.inputs(tokens, FAULTS["smoothed resizing"]))
    assert abs(np.asarray(logits) - other.numpy()).max() > 1e-2


def drawn(models, tokenizer, classes, noise, *, scale, top_k, top_p, plan, warm=()):
    """Tokens that the published sampler draws under given noise."""
    tokens = torch.zeros(len(classes), 0, dtype=torch.long)
    null = torch.full_like(classes, CLASSES)
    for k, side in enumerate(SCALES):
        start, count = tokens.shape[1], side * side
        padded = torch.cat(
            [tokens, torch.zeros(len(classes), LENGTH - start, dtype=torch.long)], dim=1
        )
        inputs = tokenizer.inputs(padded)[:, : start + count - 1]
        model = models[plan[k]]
        given, free = model(classes, inputs), model(null, inputs)
        t = scale * k / (len(SCALES) - 1)
        logits = ((1 + t) * given - t * free)[:, -count:]
        kth = logits.topk(top_k, dim=-1)[0][..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
        ordered, index = logits.sort(dim=-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1] = False
        drop = torch.zeros_like(drop).scatter(-1, index, drop)
        logits = logits.masked_fill(drop, -torch.inf) / (warm[k] if warm else 1)
        ids = (logits + noise[:, start : start + count]).argmax(-1)
        tokens = torch.cat([tokens, ids], dim=1)
    return tokens


def test_a_whole_generation_is_that_of_the_published_sampler(
    tokenizer, transformer, ours
):
    model = converted(transformer.state_dict())
    classes, keys = torch.tensor([2, 5]), batch_keys(4, 2)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    noise = torch.tensor(np.asarray(position_noise(keys, positions, CODES)))
    expected = drawn(
        [transformer], tokenizer, classes, noise, scale=1.5, top_k=30, top_p=0.9,
        plan=[0] * 10,
    )  # fmt: skip
    generator = one_model(model.model, ours.model.scales)
    quantizer = {k: ours.params[k] for k in ("codebook", "residual_convs")}
    variables = NextScaleVariables((model.params,), quantizer)
    run = jax.jit(partial(generator.generate, variables))
    settings = {"top_k": 30, "top_p": 0.9, "cfg_scale": 2.5}
    out = run(as_jax(classes), sampling=Sampling.create(**settings), keys=keys)
    assert (np.asarray(out.tokens) == expected.numpy()).mean() > 0.999
    # The control: guidance of another strength.
    other = run(
        as_jax(classes),
        sampling=Sampling.create(**{**settings, "cfg_scale": 1.5}),
        keys=keys,
    )
    assert (np.asarray(other.tokens) == expected.numpy()).mean() < 0.9


def test_two_models_share_a_generation_as_published(tokenizer, ours):
    sizes = [(CODES, WIDTH, n, 48, 4, SCALES, CLASSES) for n in (3, 2)]
    twins = [randomized(VAR(*s), seed=5 + i) for i, s in enumerate(sizes)]
    large, small = (converted(twin.state_dict()) for twin in twins)
    classes, keys = torch.tensor([1, 6]), batch_keys(8, 2)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    noise = torch.tensor(np.asarray(position_noise(keys, positions, CODES)))
    expected = drawn(
        twins, tokenizer, classes, noise, scale=1.5, top_k=30, top_p=0.96,
        plan=[0] * 8 + [1] * 2, warm=[1.1] * 7 + [1.0] * 3,
    )  # fmt: skip
    generator = collaborative(large.model, small.model, ours.model.scales, 8)
    quantizer = {k: ours.params[k] for k in ("codebook", "residual_convs")}
    variables = NextScaleVariables((large.params, small.params), quantizer)
    settings = Sampling.create(top_k=30, top_p=0.96, cfg_scale=2.5)
    out = jax.jit(partial(generator.generate, variables))(
        as_jax(classes), sampling=settings, keys=keys
    )
    assert (np.asarray(out.tokens) == expected.numpy()).mean() > 0.999


def test_the_published_nucleus_keeps_the_same_tokens():
    """Dropping up to a mass of 1 - p from below keeps the likeliest up to p."""
    logits = torch.randn(200, 50, generator=torch.manual_seed(0)) * 2
    for p in (0.3, 0.9, 0.96):
        ordered, index = logits.sort(dim=-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - p
        drop[..., -1] = False
        kept = ~torch.zeros_like(drop).scatter(-1, index, drop).numpy()
        (threshold,) = mass_thresholds(as_jax(logits), (jnp.full((200, 1), p),))
        np.testing.assert_array_equal(as_jax(logits) >= threshold, kept)


def test_files_that_do_not_fit_are_refused(tokenizer, transformer):
    state = tokenizer.state_dict()
    with pytest.raises(ConfigError, match="10 scales, not those 3"):
        converted(state, scales=(1, 2, 4))
    broken = {k: v for k, v in transformer.state_dict().items() if "fc2" not in k}
    with pytest.raises(ConfigError, match="missing"):
        converted(broken)
    levels = {**transformer.state_dict(), "lvl_1L": torch.zeros(1, 5, dtype=torch.long)}
    with pytest.raises(ConfigError, match="no squares"):
        converted(levels)
