"""Policies of blocks, of an autoregressive guide, and of a trained filter."""

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.config import TransformerConfig
from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.masked import (
    Blocks,
    Confidence,
    Guided,
    MaskedGenerator,
    MaskedVariables,
    MaskingSchedule,
    Revision,
    StopFilter,
    Threshold,
)
from jaxspec.masked.policies.guided import scores_of
from jaxspec.masked.policies.named import named_policy
from jaxspec.models.transformer.model import Transformer
from jaxspec.train.stop_filter import final_tokens, train_stop_filter
from tests.masked.models import CLASSES, CONFIG, MODEL, VARIABLES
from tests.models.tiny import random_params

LENGTH = CONFIG.sequence_length
SURE = Confidence("sampled", 0.0)
LINEAR = MaskingSchedule(LENGTH, LENGTH // 2, "linear")


@partial(jax.jit, static_argnums=0)
def run(generator, variables, prompt, options):
    return generate(generator, variables, prompt, **options)


def options(batch=3, **settings):
    sampling = Sampling.create(**{"cfg_scale": 2.0, **settings})
    return {"sampling": sampling, "keys": batch_keys(0, batch)}


def steps_of(generator, variables, prompt, settings):
    """Known tokens after each step, by number of the step."""
    step = jax.jit(generator.step)
    state = generator.init(variables, prompt, **settings)
    while not state.done.all():
        state = step(variables, state)
        yield np.asarray(state.known)


@pytest.mark.parametrize("policy", [SURE, Threshold(0.2)])
def test_blocks_are_finished_from_the_left(policy):
    """A step reveals tokens of one block; the last one of a schedule all."""
    generator = MaskedGenerator(MODEL, LINEAR, Blocks(policy, 6))
    numbers, before = [], np.zeros((3, LENGTH), bool)
    for known in steps_of(generator, VARIABLES, CLASSES, options()):
        places = np.where(known & ~before, np.arange(LENGTH) // 6, -1)
        for row in places if policy is SURE or not known.all() else ():
            assert len(set(row[row >= 0])) <= 1
        before = known
        for row in known:
            blocks = np.split(row, [6, 12])
            started = [block.any() for block in blocks]
            whole = [block.all() for block in blocks]
            assert started[1] <= whole[0] and started[2] <= whole[1]
        numbers.append(known.sum(axis=1))
    if policy is SURE:  # as many as the schedule asks, up to the ends of blocks
        assert_array_equal(numbers[0], [2, 2, 2])
        assert (np.diff(numbers, axis=0) <= 2).all()
    # Steps that do not divide blocks: what the ends of blocks kept back comes next.
    odd = MaskingSchedule(LENGTH, 5, "cosine")
    masked = odd.masked
    steps = steps_of(
        replace(generator, schedule=odd, policy=Blocks(SURE, 5)),
        VARIABLES,
        CLASSES,
        options(),
    )
    revealed = [LENGTH - known.sum(axis=1) for known in steps]
    assert (revealed[-2] <= masked[4] + 5).all()
    whole = replace(generator, policy=Blocks(policy, LENGTH))
    out = run(whole, VARIABLES, CLASSES, options())
    plain = run(replace(generator, policy=policy), VARIABLES, CLASSES, options())
    assert_array_equal(out.tokens, plain.tokens)


GUIDE_CONFIG = replace(CONFIG, extra_tokens=0, layers=1)
GUIDE = Transformer(GUIDE_CONFIG)
GUIDE_PARAMS = random_params(GUIDE_CONFIG, seed=5)
GUIDE_PARAMS = {**GUIDE_PARAMS, "head": 10 * GUIDE_PARAMS["head"]}


@pytest.mark.variants(1)
@pytest.mark.parametrize("agreement", ["exact", "probability", "top", "near"])
def test_tokens_stay_up_to_the_first_that_the_guide_refuses(agreement):
    """By hand, from the probabilities of each step."""
    policy = Guided(GUIDE, agreement, least=0.15, most=3, within=0.6)
    generator = MaskedGenerator(MODEL, LINEAR, policy)
    variables = replace(VARIABLES, policy=GUIDE_PARAMS)
    state = generator.init(variables, CLASSES, **options())
    seconds = []  # second likeliest tokens: whether they agree
    for _ in range(3):
        view, _, _ = generator.look(variables, state)
        p = jax.nn.softmax(scores_of(GUIDE, GUIDE_PARAMS, CLASSES, view.tokens))
        found = np.asarray(policy.reveal(view))
        for row in range(3):
            right = np.array(view.known[row])
            for t in range(right.argmin(), LENGTH):
                ranked = np.argsort(-np.asarray(p[row, t]))
                token = view.tokens[row, t]
                agreed = {
                    "exact": token == ranked[0],
                    "probability": p[row, t, token] >= 0.15,
                    "top": token in ranked[:3],
                    "near": token in ranked[:2]
                    and p[row, t, token] >= 0.4 * p[row, t, ranked[0]],
                }[agreement]
                seconds += [bool(agreed)] if token == ranked[1] else []
                if not (agreed or right[:t].sum() == np.sum(view.known[row])):
                    break
                right[t] = True
            assert_array_equal(found[row], right)
        state = generator.step(variables, state)
    assert agreement != "near" or set(seconds) == {False, True}
    out = run(generator, variables, CLASSES, options())
    assert (out.tokens >= 0).all() and out.stats.calls.min() < LENGTH


def test_a_guide_that_agrees_with_all_needs_one_step():
    policy = Guided(GUIDE, "top", most=CONFIG.vocab_size)
    generator = MaskedGenerator(MODEL, LINEAR, policy)
    variables = replace(VARIABLES, policy=GUIDE_PARAMS)
    out = run(generator, variables, CLASSES, options())
    assert (out.stats.calls == 1).all()


@pytest.mark.slow
def test_a_guide_reads_texts_after_prompts_of_different_lengths():
    config = TransformerConfig(
        vocab_size=11, layers=1, width=16, heads=2, rope="sequence", condition="none"
    )
    model, params = Transformer(config), random_params(config)
    prompts = jnp.array([[3, 4, 5], [6, -1, -1]])
    tokens = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = scores_of(model, params, prompts, tokens)
    for row, count in enumerate((3, 1)):
        ids = jnp.concatenate([prompts[row, :count], tokens[row]])[None]
        logits, _ = model.score(params, None, ids)
        assert_allclose(found[row], logits[0, count - 1 : count + 3], atol=1e-5)
    alone = scores_of(model, params, None, tokens)
    assert not alone[:, 0].any()


@dataclass(frozen=True)
class Wavering:
    """Stands for a network whose wrong guesses are unsure.

    The right token of position `t` is `t % 5`. While fewer than half of the tokens are
    known, positions of every third column guess another one, with low probability.
    """

    @property
    def model(self):
        """Stands for a network."""
        config = SimpleNamespace(condition="none", sequence_length=24)
        return SimpleNamespace(config=config)

    @property
    def mask_token(self):
        """See `MaskedDiffusion`."""
        return 5

    def score(self, params, prompt, tokens):
        """Logits of each token."""
        place = jnp.arange(24)
        share = jnp.mean((tokens < 5).astype(jnp.float32), axis=1)[:, None]
        wrong = (place % 3 == 0)[None] & (share < 0.5)
        guess = jnp.where(wrong, (place + 1) % 5, place % 5)
        scale = jnp.where(wrong, 1.0, 6.0)
        return jax.nn.one_hot(guess, 5) * scale[..., None]


def test_a_trained_filter_saves_steps_and_keeps_the_tokens():
    """The control: a filter that takes every token for final keeps wrong ones."""
    policy = StopFilter(SURE, block=8, threshold=0.9)
    schedule = MaskingSchedule(24, 24, "linear")
    generator = MaskedGenerator(Wavering(), schedule, policy, cfg=False)
    greedy = {"sampling": Sampling.create(temperature=0.0), "keys": batch_keys(0, 2)}
    bare = MaskedVariables({})
    traces = jax.jit(partial(final_tokens, generator, **greedy))(bare, None)
    assert not traces[1].all() and traces[1].mean() > 0.5
    train = jax.jit(partial(train_stop_filter, stop_filter=policy, steps=300))
    params, losses = train(jax.random.key(0), traces=traces)
    assert losses[-1] < 0.3 * losses[0]
    plain = run(replace(generator, policy=SURE), bare, None, greedy)
    out = run(generator, MaskedVariables({}, params), None, greedy)
    assert_array_equal(out.tokens, plain.tokens)
    assert (out.stats.calls < 6).all() and (plain.stats.calls == 24).all()
    every = {**params, "out_bias": params["out_bias"] + 100}
    wrong = run(generator, MaskedVariables({}, every), None, greedy)
    assert (wrong.stats.calls == 1).all() and (wrong.tokens != plain.tokens).any()


def test_the_schedule_goes_on_beside_the_filter():
    """A filter that takes half of the tokens for final saves half of the steps."""
    policy = StopFilter(SURE, block=24, threshold=0.5)
    schedule = MaskingSchedule(24, 12, "linear")
    generator = MaskedGenerator(Wavering(), schedule, policy, cfg=False)
    params = jax.tree.map(jnp.zeros_like, policy.init(jax.random.key(0)))
    half = jnp.where(jnp.arange(24) < 12, 5.0, -5.0)
    params = {**params, "out_bias": half}
    greedy = {"sampling": Sampling.create(temperature=0.0), "keys": batch_keys(0, 2)}
    out = run(generator, MaskedVariables({}, params), None, greedy)
    assert (out.stats.calls <= 7).all()


def test_policies_with_parameters_ask_for_them():
    for policy in (Guided(GUIDE), StopFilter(SURE)):
        generator = MaskedGenerator(MODEL, LINEAR, policy)
        with pytest.raises(ConfigError, match="has parameters"):
            generate(generator, VARIABLES, CLASSES, **options())
    changes = {"vocab_size": 5, "order": "halton", "classes": 7, "condition": "none"}
    for name, value in changes.items():
        strange = Guided(Transformer(replace(GUIDE_CONFIG, **{name: value})))
        with pytest.raises(ConfigError, match=f"the guide has {name}={value!r}"):
            MaskedGenerator(MODEL, LINEAR, Blocks(strange))
    wide = Guided(Transformer(replace(GUIDE_CONFIG, grid=8)))
    with pytest.raises(ConfigError, match="sequence_length=64, the masked model 16"):
        MaskedGenerator(MODEL, LINEAR, wide)
    head = StopFilter(SURE, block=8).init(jax.random.key(0))
    wide = MaskedGenerator(MODEL, LINEAR, StopFilter(SURE, block=16))
    with pytest.raises(ConfigError, match="block=16 needs"):
        generate(wide, replace(VARIABLES, policy=head), CLASSES, **options())
    scalar = {**head, "in_bias": jnp.zeros(())}
    for params in ({**head, "out_bias": head["out_bias"][1:]}, scalar, GUIDE_PARAMS):
        filtering = MaskedGenerator(MODEL, LINEAR, StopFilter(SURE, block=8))
        with pytest.raises(ConfigError, match="block=8 needs"):
            generate(filtering, replace(VARIABLES, policy=params), CLASSES, **options())
    with pytest.raises(ConfigError, match="both have parameters"):
        StopFilter(Blocks(Guided(GUIDE)))
    with pytest.raises(ConfigError, match="needs a generator"):
        final_tokens(
            MaskedGenerator(MODEL, LINEAR, SURE), VARIABLES, CLASSES, **options()
        )


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="mask no token again"):
        Blocks(Revision(SURE))
    with pytest.raises(ConfigError, match="size"):
        Blocks(SURE, 0)
    with pytest.raises(ConfigError, match="whole number"):
        named_policy("blocks-1.5", 16)
    assert named_policy("blocks-8", 16) == Blocks(SURE, 8)
    with pytest.raises(ConfigError, match="agreement='twice'"):
        Guided(GUIDE, "twice")
    with pytest.raises(ConfigError, match="within=2"):
        Guided(GUIDE, "near", within=2)
    with pytest.raises(ConfigError, match="most=12"):
        Guided(GUIDE, "top", most=12)
    with pytest.raises(ConfigError, match="threshold=2"):
        StopFilter(SURE, threshold=2)
