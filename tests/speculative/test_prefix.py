"""Continuing given tokens: the rest of the same sequence, at every length of prefix."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.noise import batch_keys, draw_noise
from jaxspec.core.sampling import Sampling, active_steps
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.drafters import GridJacobi, Jacobi, NgramTable
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.prompts import TokenPrompt
from jaxspec.sharding import make_mesh, over_batch
from jaxspec.speculative import draft_step
from jaxspec.speculative.draft_step import draft
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.prefix import Prefixed
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.properties import assert_fresh_cache, run_rounds
from jaxspec.testing.toy import NoisyOracle, toy_params, toy_target
from tests.drafters.tiny import (
    BLOCK,
    FEATURES,
    TARGET,
    TREE,
    bound_params,
    feature_params,
    target_params,
)
from tests.models import text
from tests.speculative.drifting import drifting
from tests.speculative.trees.random_trees import trees

VOCAB, LENGTH, ROWS = 6, 14, 3
PARAMS = toy_params(VOCAB, 60)
PROMPT = jnp.array([[1, 2, 3, 1], [4, 4, -1, -1], [0, -1, -1, -1]])
SETTINGS = {
    "temperature": [1.0, 0.0, 0.7],
    "cfg_scale": [2.0, 0.5, 3.0],
    "cfg_interval": [-1, 4, 7],
}
PLAIN = ("temperature",)  # no filter to compile


def generate(target, params, length, prompt, drafted=(), settings=None, **options):
    """Result of an engine; `drafted` are drafter, tree and the drafter's parameters."""
    drafter, tree, drafter_params = drafted or (None, Tree.root(), None)
    engine = Engine(target, length, drafter, tree, **{"order": PLAIN, **options})
    return jax.jit(engine.generate)(
        Variables(params, drafter_params),
        prompt,
        sampling=Sampling.create(**(settings or SETTINGS)),
        keys=batch_keys(3, len(jax.tree.leaves(prompt)[0])),
    )


def continued(prefix, whole, *, prompt=PROMPT, target=None, **options):
    """Tokens after a prefix of `whole`, from a toy target."""
    given = Prefixed(prompt, whole[:, :prefix])
    target = toy_target(VOCAB, 2) if target is None else target
    return generate(target, PARAMS, whole.shape[1] - prefix, given, **options)


@lru_cache
def toy_result():
    return generate(toy_target(VOCAB, 2), PARAMS, LENGTH, PROMPT, log_probs="model")


@settings(max_examples=2)
@given(
    prefix=st.integers(1, LENGTH - 1),
    tree=trees(8).filter(lambda tree: tree.size > 1),
    seed=st.integers(0, 1000),
)
def test_any_prefix_of_a_sequence_is_continued_to_the_same_sequence(prefix, tree, seed):
    """Prompts of different lengths, guidance of some tokens, filters, any draft."""
    whole = toy_result()
    oracle = {"tokens": whole.tokens, "spoil": 0.3}
    for drafted in ((), (NoisyOracle(VOCAB, seed), tree, oracle)):
        rest = continued(prefix, whole.tokens, drafted=drafted, log_probs="model")
        np.testing.assert_array_equal(rest.tokens, whole.tokens[:, prefix:])
        assert (rest.lengths == LENGTH - prefix).all()
        assert whole.log_probs is not None and rest.log_probs is not None
        np.testing.assert_allclose(
            rest.log_probs.tokens, whole.log_probs.tokens[:, prefix:], atol=1e-4
        )
    # A drafter reads given tokens where it reads generated ones.
    accepted = rest.stats.hits.sum()
    assert accepted > 0 or LENGTH - prefix < 6


@pytest.mark.parametrize("moved", ["nothing", "noise", "guidance"])
def test_noise_and_guidance_count_from_the_first_given_token(monkeypatch, moved):
    """The control: counted from the first new token, they change the sequence."""
    prefix, whole, options = 5, toy_result().tokens, {}
    if moved == "noise":
        monkeypatch.setattr(
            draft_step,
            "draw_noise",
            lambda keys, positions, *rest: draw_noise(keys, positions - prefix, *rest),
        )
    if moved == "guidance":
        interval = [n + prefix if n >= 0 else n for n in SETTINGS["cfg_interval"]]
        options["settings"] = {**SETTINGS, "cfg_interval": interval}
    # Another length of the engine, so that no compiled program is reused.
    whole = whole[:, : LENGTH - 2 if moved == "noise" else LENGTH]
    rest = continued(prefix, whole, **options)
    assert bool((rest.tokens == whole[:, prefix:]).all()) == (moved == "nothing")


@pytest.mark.variants(1)
@pytest.mark.parametrize(("margin", "same"), [(0.1, True), (0.0, False)])
def test_near_ties_after_a_prefix_are_rescored(margin, same):
    """Passes round differently, also the one that reads the prefix, and at filters."""
    target, rows, prefix = drifting(toy_target(VOCAB, 2), 0.03), 48, 6
    settings = {"cfg_scale": 3.0, "top_k": 3}
    options = {
        "order": active_steps(Sampling.create(**settings)),
        "tie_margin": margin,
        "settings": settings,
    }
    prompt = jnp.zeros(rows, jnp.int32)
    whole = generate(target, PARAMS, LENGTH, prompt, **options).tokens
    oracle = {"tokens": whole, "spoil": 0.2}
    rest = continued(
        prefix,
        whole,
        prompt=prompt,
        target=target,
        drafted=(NoisyOracle(VOCAB), Tree.chain(3), oracle),
        **options,
    )
    assert bool((rest.tokens == whole[:, prefix:]).all()) == same
    assert bool(rest.stats.rescored.sum() > 0) == same


CLASSES, IMAGE = jnp.array([0, 2, 1]), TARGET.grid**2
IMAGE_SETTINGS = {
    "temperature": [1.0, 0.0, 0.7],
    "cfg_scale": 2.0,
    "cfg_interval": [-1, -1, 6],
}


@lru_cache
def image_tokens():
    target = Transformer(TARGET).as_target(cfg=True)
    return generate(
        target, target_params(), IMAGE, CLASSES, settings=IMAGE_SETTINGS
    ).tokens


SHORT = Tree.named("0,1,00")
ANY_MODEL = {
    "jacobi": (Jacobi(TARGET.vocab_size), TREE),
    "grid jacobi": (GridJacobi(TARGET.vocab_size, TARGET.grid), TREE),
    "n-grams of a grid": (NgramTable(TARGET.vocab_size, (1, 4), 64, 4), TREE),
    "block, image row above": (
        DFlash(replace(BLOCK, block_size=3, above=True), TARGET),
        SHORT,
    ),
}
DEFAULT = ("plain", "block, image row above")


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in DEFAULT else pytest.mark.slow)
        for n in ("plain", *ANY_MODEL, *FEATURES)
    ],
)
def test_a_transformer_continues_an_image_with_every_drafter(name):
    """Cells of a grid: rotary angles of both axes go on where the prefix ends."""
    whole, drafted, params = image_tokens(), (), None
    if name in FEATURES:
        drafted, params = FEATURES[name], feature_params(name)
    elif name in ANY_MODEL:
        drafted = ANY_MODEL[name]
        if hasattr(drafted[0], "init_params"):
            params = bound_params(drafted[0])
    for prefix in (6,) if drafted else (1, 15):
        engine, state = run_rounds(
            Transformer(TARGET).as_target(cfg=True),
            target_params(),
            *(
                drafted
                and (drafted[0], params, drafted[1])
                or (None, None, Tree.root())
            ),
            Prefixed(CLASSES, whole[:, :prefix]),
            length=IMAGE - prefix,
            batch=ROWS,
            sampling=Sampling.create(ROWS, **IMAGE_SETTINGS),
            order=PLAIN,
            seed=3,
        )
        np.testing.assert_array_equal(state.tokens[:, :IMAGE], whole)
        np.testing.assert_array_equal(engine.result(state).tokens, whole[:, prefix:])
        if drafted and int(state.stats.hits.sum()):
            given = Prefixed(CLASSES, whole[:, :prefix])
            assert_fresh_cache(engine, target_params(), given, state)


SAME_DRAFTS = [
    *("block", "eagle-3", "falcon", "hydra++", "small transformer"),
    *("kangaroo", "n-grams of a grid", "block, image row above"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME_DRAFTS)
def test_a_drafter_drafts_after_a_prefix_as_after_generated_tokens(name):
    """Features of given tokens reach its cache; the control is another prefix."""
    drafter, tree = (FEATURES | ANY_MODEL)[name]
    params = feature_params(name) if name in FEATURES else None
    if params is None and hasattr(drafter, "init_params"):
        params = bound_params(drafter)
    target = Transformer(TARGET).as_target(cfg=True)
    engine = Engine(target, IMAGE, drafter, tree, order=PLAIN, tie_margin=0.0)
    variables = Variables(target_params(), params)
    options = {"sampling": Sampling.create(1, cfg_scale=2.0), "keys": batch_keys(3, 1)}
    step = jax.jit(engine.step)
    state = jax.jit(engine.init)(variables, CLASSES[:1], **options)
    while int(state.length[0]) < 8:
        state = step(variables, state)
    count = int(state.length[0])

    tokens = state.tokens[:, :count]
    next_log_q = jax.jit(lambda state: draft(engine, variables, state).draft.log_q)

    @jax.jit
    def log_q(tokens):
        state = engine.init(variables, Prefixed(CLASSES[:1], tokens), **options)
        return draft(engine, variables, state).draft.log_q

    expected = next_log_q(state)
    np.testing.assert_allclose(log_q(tokens), expected, atol=1e-4)
    other = tokens.at[:, count - 3].set((tokens[:, count - 3] + 1) % TARGET.vocab_size)
    assert np.abs(log_q(other) - expected).max() > 1e-3


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("guided", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_text_model_continues_prompts_of_different_lengths(guided):
    """Each branch has its own prompt, and the given tokens directly after it."""
    prompt = TokenPrompt(text.PROMPT, text.NULL) if guided else text.PROMPT
    drafter = text.DRAFTERS["eagle-3"]
    params = drafter.init_params(jax.random.key(1))
    params = drafter.with_target_params(params, text.PARAMS)
    options = {"settings": {"cfg_scale": 2.0, "cfg_interval": 5}}
    target = text.MODEL.as_target(cfg=guided)
    whole = generate(target, text.PARAMS, 12, prompt, **options).tokens
    given = Prefixed(prompt, whole[:, :4])
    rest = generate(target, text.PARAMS, 8, given, (drafter, TREE, params), **options)
    np.testing.assert_array_equal(rest.tokens, whole[:, 4:])


@pytest.mark.slow
def test_a_prefix_of_no_tokens_is_the_program_without_one():
    engine = Engine(toy_target(VOCAB, 2), LENGTH, Jacobi(VOCAB), Tree.chain(2))
    options = {"sampling": Sampling.create(ROWS), "keys": batch_keys(3, ROWS)}

    def program(prompt):
        run = partial(engine.generate, Variables(PARAMS))
        return jax.jit(run).lower(prompt, **options).as_text()

    empty = jnp.zeros((ROWS, 0), jnp.int32)
    assert program(Prefixed(PROMPT, empty)) == program(PROMPT)
    assert program(Prefixed(PROMPT, empty[:, :0])) != program(
        Prefixed(PROMPT, jnp.zeros((ROWS, 1), jnp.int32))
    )


@pytest.mark.variants(1)
@pytest.mark.parametrize("stages", [1, 3])
def test_limits_and_counters_count_new_tokens(stages):
    whole, prefix = toy_result().tokens, 5
    engine = Engine(
        toy_target(VOCAB, 2), LENGTH - prefix, order=PLAIN, cache_stages=stages
    )
    stop = int(whole[2, prefix + 3])
    assert stop not in whole[2, prefix : prefix + 3].tolist()
    out = jax.jit(engine.generate)(
        Variables(PARAMS),
        Prefixed(PROMPT, whole[:, :prefix]),
        sampling=Sampling.create(ROWS, **SETTINGS),
        keys=batch_keys(3, ROWS),
        stopping=StoppingCriteria.create(
            ROWS, max_new_tokens=[LENGTH, 2, LENGTH], stop_tokens=[[-1], [-1], [stop]]
        ),
    )
    assert out.lengths.tolist() == [LENGTH - prefix, 2, 4]
    expected = np.where(
        np.arange(LENGTH - prefix) < out.lengths[:, None], whole[:, prefix:], -1
    )
    np.testing.assert_array_equal(out.tokens, expected)
    # One call for the prompt, one for the prefix, one for each token.
    assert out.stats.calls.tolist() == [2 + n for n in out.lengths.tolist()]


@pytest.mark.slow
def test_sequences_with_a_prefix_run_on_a_mesh_and_in_a_queue():
    """Continuous batching: six requests, two at a time."""
    whole, prefix, count = toy_result().tokens, 5, 6
    index = np.resize(np.arange(ROWS), count)
    settings = {name: np.resize(x, count) for name, x in SETTINGS.items()}
    target, tree = toy_target(VOCAB, 2), Tree.chain(3)
    engine = Engine(target, LENGTH - prefix, Jacobi(VOCAB), tree, order=PLAIN)
    requests = Requests(
        jnp.arange(count),
        Prefixed(PROMPT[index], whole[index, :prefix]),
        Sampling.create(count, **settings),
        batch_keys(3, ROWS)[index],
        StoppingCriteria.create(count, max_new_tokens=LENGTH),
    )
    first = jax.tree.map(lambda x: x[:2], requests)
    batch = jax.jit(partial(idle_batch, engine))(Variables(PARAMS), first)
    _, finished = jax.jit(partial(run_queue, engine))(
        Variables(PARAMS), batch, requests, True
    )
    order = np.argsort(np.asarray(finished.ids))[-count:]
    expected = whole[index, prefix:]
    np.testing.assert_array_equal(finished.result.tokens[order], expected)
    on_mesh = jax.jit(over_batch(make_mesh(2, 1), engine.generate))
    out = on_mesh(
        Variables(PARAMS),
        requests.prompt,
        sampling=requests.sampling,
        keys=requests.keys,
    )
    np.testing.assert_array_equal(out.tokens, expected)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (jnp.zeros((ROWS, 2)), r"are float32 \[3, 2\]; give ints \[B, P\]"),
        (jnp.zeros(ROWS, jnp.int32), r"are int32 \[3\]; give ints \[B, P\]"),
        (jnp.zeros((2, 4), jnp.int32), "there are 2 sequences"),
    ],
)
def test_given_tokens_of_another_kind_are_refused_in_one_sentence(tokens, words):
    with pytest.raises(ConfigError, match=words):
        generate(toy_target(VOCAB, 2), PARAMS, 4, Prefixed(PROMPT, tokens))


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_given_tokens_outside_the_vocabulary_are_refused_or_marked(token):
    """Under `jit`, where tokens are unknown, `finite` is False for their sequence."""
    target = toy_target(VOCAB, 2)
    prompt = Prefixed(PROMPT, jnp.zeros((ROWS, 4), jnp.int32).at[1, 3].set(token))
    options = {"sampling": Sampling.create(**SETTINGS), "keys": batch_keys(3, ROWS)}
    with pytest.raises(ConfigError, match="tokens of sequence 1 are not all in 0 to 5"):
        Engine(target, 4, order=PLAIN).init(Variables(PARAMS), prompt, **options)
    out = generate(target, PARAMS, 4, prompt)
    assert out.finite.tolist() == [True, False, True]
