"""Late maps of which layers compute the most distinct tokens alone (FastVAR)."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.core.generator import advance, generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale import ScaleSampling, TokenSkipping, collaborative, one_model
from tests.next_scale.models import CONFIG, MODEL, SCALES, random_params, variables

VARIABLES = variables()
PLAIN = one_model(MODEL, SCALES)
CLASSES = jnp.array([1, 4, 0], jnp.int32)
SKIPPING = TokenSkipping((0.5, 0.4), first_layer=1)
SIDES = CONFIG.scales


def options():
    sampling = Sampling.create(cfg_scale=2.5, top_k=8, top_p=0.95)
    return {"sampling": sampling, "keys": batch_keys(0, 3)}


@partial(jax.jit, static_argnums=0)
def whole(generator, prompt, options):
    return generate(generator, VARIABLES, prompt, **options)


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def reference(params, condition, vectors, wrong=""):
    """Logits of the last map of one sequence, map by map, in double precision."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    silu = condition / (1 + np.exp(-condition))
    keys, values = ([[] for _ in range(CONFIG.layers)] for _ in range(2))
    added, end = {}, 0
    for scale, side in enumerate(SIDES):
        start, end = end, end + side * side
        x = vectors[start:end] @ p["vectors_in"]["kernel"] + p["vectors_in"]["bias"]
        x = x if scale else (condition + p["start"])[None]
        x = x + p["positions"][start:end] + p["levels"][scale]
        for i in range(CONFIG.layers):
            block = p[f"blocks_{i}"]
            m = silu @ block["modulation"]["kernel"] + block["modulation"]["bias"]
            gates, scales, shifts = m.reshape(3, 2, -1)
            count = len(x)
            if scale >= 2 and i >= 1:
                count = int(np.ceil(len(x) * SKIPPING.shares[scale - 2]))
            for half in range(2):
                distance = ((x - x.mean(0)) ** 2).sum(-1)
                order = np.argsort(-distance if wrong != "nearest" else distance)
                places = order[:count]
                h = normalized(x[places]) * (scales[half] + 1) + shifts[half]
                if half == 0:
                    out = attention(block["attention"], h, keys[i], values[i])
                else:
                    h = h @ block["change"]["kernel"] + block["change"]["bias"]
                    h = np.asarray(jax.nn.gelu(jnp.asarray(h), approximate=True))
                    out = h @ block["down"]["kernel"] + block["down"]["bias"]
                if scale == 1:
                    added[i, half] = out[np.argsort(places)]
                if count < len(x):
                    old = added[i, half].reshape(2, 2, -1)
                    cells = [cells_below(side, r) for r in range(side)]
                    full = np.array(
                        [[old[np.ix_(r, c)].mean((0, 1)) for c in cells] for r in cells]
                    ).reshape(side * side, -1)
                    full = full * (wrong != "zeros")
                    full[places] = out
                    out = full
                elif scale != 1:
                    out = out[np.argsort(places)]
                else:
                    out = added[i, half]
                x = x + gates[half] * out
    m = silu @ p["head_modulation"]["kernel"] + p["head_modulation"]["bias"]
    factor, shift = m.reshape(2, -1)
    h = normalized(x) * (factor + 1) + shift
    return h @ p["logits"]["kernel"] + p["logits"]["bias"]


def cells_below(side, r):
    return list(range(r * 2 // side, -(-(r + 1) * 2 // side)))


def attention(p, x, keys, values):
    heads = CONFIG.heads
    fused = np.einsum("td,dahf->atHf".replace("H", "h"), x, p["qkv"]["kernel"])
    q = fused[0] + p["q_bias"].reshape(heads, -1)
    v = fused[2] + p["v_bias"].reshape(heads, -1)
    scale = np.exp(np.minimum(p["log_scale"], np.log(100)))[None, :, None]
    unit = [y / np.linalg.norm(y, axis=-1, keepdims=True) for y in (q, fused[1])]
    keys.append(unit[1])
    values.append(v)
    k, v = np.concatenate(keys), np.concatenate(values)
    weights = jax.nn.softmax(np.einsum("thf,shf->hts", unit[0] * scale, k), axis=-1)
    out = np.einsum("hts,shf->thf", weights, v).reshape(len(x), -1)
    return out @ p["out"]["kernel"] + p["out"]["bias"]


@pytest.fixture(scope="module")
def last_logits():
    """Logits of the last map, whose tokens are partly left out, and what it reads."""
    generator = one_model(MODEL, SCALES, skipping=SKIPPING)

    @jax.jit
    def run(prompt, options):
        state = generator.init(VARIABLES, prompt, **options)
        for scale in range(3):
            state = generator.make_scale(VARIABLES, state, scale)
        return generator._logits(VARIABLES, state, 3)[0], state

    return run(CLASSES, options())


@pytest.mark.parametrize("wrong", ["", "nearest", "zeros"])
def test_the_most_distinct_tokens_are_computed_and_earlier_outputs_stand_for_others(
    last_logits, wrong
):
    """Controls: the least distinct tokens, and zeros in place of earlier outputs."""
    logits, state = last_logits
    params = random_params()
    with jax.enable_x64(True):
        right = reference(
            params,
            np.asarray(state.conditions[0][1], np.float64),
            np.asarray(state.inputs[1], np.float64),
            wrong,
        )
    close = np.allclose(logits[1], right, atol=1e-3)
    assert close == (not wrong)


def test_with_all_tokens_it_is_plain_generation():
    generator = one_model(MODEL, SCALES, skipping=TokenSkipping((1.0, 1.0), 0))
    out = whole(generator, CLASSES, options())
    assert_array_equal(out.tokens, whole(PLAIN, CLASSES, options()).tokens)


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("guided", [None, 2])
def test_steps_and_batches_change_no_token(guided):
    sampling = ScaleSampling(4, guided=guided)
    generator = one_model(MODEL, SCALES, sampling=sampling, skipping=SKIPPING)
    out = whole(generator, CLASSES, options())
    single = {**options(), "keys": options()["keys"][1:2]}
    alone = whole(generator, CLASSES[1:2], single)
    assert_array_equal(out.tokens[1], alone.tokens[0])
    state = generator.init(VARIABLES, CLASSES, **options())
    state = jax.jit(partial(advance, generator), static_argnames="steps")(
        VARIABLES, state, steps=4
    )
    assert_array_equal(out.tokens, generator.result(state).tokens)
    plain = replace(generator, skipping=None)
    assert (out.tokens != whole(plain, CLASSES, options()).tokens).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenSkipping(()), "shares"),
        (lambda: TokenSkipping((0.5, 0.0)), "shares"),
        (lambda: TokenSkipping((0.5, 1.5)), "shares"),
        (lambda: TokenSkipping((0.5,), -1), "first_layer"),
        (
            lambda: one_model(MODEL, SCALES, skipping=TokenSkipping((0.5,) * 3)),
            "at most 2",
        ),
        (
            lambda: collaborative(MODEL, MODEL, SCALES, 2, skipping=SKIPPING),
            "one model",
        ),
        (
            lambda: one_model(
                NextScale(replace(CONFIG, attends="own")), SCALES, skipping=SKIPPING
            ),
            "reads earlier maps",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_fewer_tokens_are_computed():
    """Left out are exactly as many tokens as the shares demand."""
    assert [SKIPPING.count(SIDES, scale, 1) for scale in range(4)] == [1, 4, 5, 10]
    assert [SKIPPING.count(SIDES, scale, 0) for scale in range(4)] == [1, 4, 9, 25]
    assert_allclose(SKIPPING.mask(SIDES, 3, 1)[0].sum(), 1 + 4 + 5 + 10)
    assert SKIPPING.mask(SIDES, 1, 1) is None
