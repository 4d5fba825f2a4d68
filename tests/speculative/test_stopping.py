"""Sequences end independently, and do not affect each other."""

from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.toy import NoisyOracle, toy_params, toy_target

VOCAB, LENGTH, PROMPT = 5, 13, 4
PARAMS = toy_params(VOCAB, PROMPT + 2 * LENGTH + 12)


def cut(tokens, budget, stop):
    """Tokens of an unlimited sequence up to its limit."""
    tokens = tokens[:budget]
    ends = np.flatnonzero(np.isin(tokens, [t for t in stop if t >= 0]))
    return tokens[: ends[0] + 1] if len(ends) else tokens


@lru_cache
def runner(branches, tree=None):
    """Compiled generation, one program for all contents."""
    drafter = None if tree is None else NoisyOracle(VOCAB)
    shape = Tree.root() if tree is None else Tree.named(tree)
    engine = Engine(
        toy_target(VOCAB, branches), LENGTH, drafter, shape, order=("temperature",)
    )
    return jax.jit(engine.generate)


@settings(max_examples=5)
@given(
    tree=st.sampled_from(["chain-4", "0,1,2,00,01"]),
    spoil=st.sampled_from([0.0, 0.4, 1.0]),
    branches=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_each_sequence_is_a_prefix_of_its_unlimited_run(tree, spoil, branches, data):
    """Unequal prompts, budgets and stop tokens, greedy and sampled, in one batch."""
    rows = 4
    budget = data.draw(st.lists(st.integers(1, LENGTH), min_size=rows, max_size=rows))
    stop = data.draw(
        st.lists(
            st.tuples(st.integers(-1, VOCAB - 1), st.integers(-1, VOCAB - 1)),
            min_size=rows,
            max_size=rows,
        )
    )
    prompts = data.draw(
        st.lists(
            st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=PROMPT),
            min_size=rows,
            max_size=rows,
        )
    )
    seed = data.draw(st.integers(0, 1000))
    padded = jnp.array([p + [-1] * (PROMPT - len(p)) for p in prompts])
    temperature = np.resize([1.0, 0.0, 1.5], rows)
    cfg_scale = np.resize([2.0, 0.5], rows)
    keys = batch_keys(seed, rows)

    # Alone, unpadded, plain and without limits.
    alone = []
    for b in range(rows):
        one = Sampling.create(1, temperature=temperature[b], cfg_scale=cfg_scale[b])
        prompt = jnp.array([prompts[b]])
        out = runner(branches)(
            Variables(PARAMS), prompt, sampling=one, keys=keys[b : b + 1]
        )
        alone.append(np.asarray(out.tokens[0]))

    sampling = Sampling.create(rows, temperature=temperature, cfg_scale=cfg_scale)
    oracle = {"tokens": jnp.asarray(np.stack(alone)), "spoil": spoil}
    stopping = StoppingCriteria.create(rows, max_new_tokens=budget, stop_tokens=stop)
    out = runner(branches, tree)(
        Variables(PARAMS, oracle),
        padded,
        sampling=sampling,
        keys=keys,
        stopping=stopping,
    )
    for b in range(rows):
        wanted = cut(alone[b], budget[b], stop[b])
        length = int(out.lengths[b])
        assert out.tokens[b, :length].tolist() == wanted.tolist()
        assert (np.asarray(out.tokens[b, length:]) == -1).all()


@pytest.mark.slow
def test_a_finished_sequence_costs_no_calls():
    rows = 3
    target, sampling = toy_target(VOCAB), Sampling.create(3)
    engine = Engine(target, LENGTH, order=("temperature",))
    stopping = StoppingCriteria.create(rows, max_new_tokens=[1, 5, LENGTH])
    prompt, keys = jnp.zeros(rows, jnp.int32), batch_keys(0, rows)
    out = engine.generate(
        Variables(PARAMS), prompt, sampling=sampling, keys=keys, stopping=stopping
    )
    assert out.stats.calls.tolist() == [1, 5, LENGTH]
    assert out.lengths.tolist() == [1, 5, LENGTH]
    assert out.stats.accepted.sum(1).tolist() == [0, 4, LENGTH - 1]


@pytest.mark.slow
def test_counters_add_up():
    rows = 4
    target, sampling = toy_target(VOCAB), Sampling.create(4)
    prompt, keys = jnp.zeros(rows, jnp.int32), batch_keys(2, rows)
    plain = Engine(target, LENGTH).generate(
        Variables(PARAMS), prompt, sampling=sampling, keys=keys
    )
    engine = Engine(target, LENGTH, NoisyOracle(VOCAB), Tree.named("0,1,00,01,000"))
    oracle = {"tokens": plain.tokens, "spoil": 0.3}
    out = jax.jit(engine.generate)(
        Variables(PARAMS, oracle), prompt, sampling=sampling, keys=keys
    )
    stats = jax.tree.map(np.asarray, out.stats)
    rounds = stats.calls - 1  # without the prefill
    np.testing.assert_array_equal(stats.accepted.sum(1), rounds)
    kept = (stats.accepted * np.arange(stats.accepted.shape[1])).sum(1)
    np.testing.assert_array_equal(stats.hits.sum((1, 2)), kept)
    # All tokens except the surplus of the last round over the budget.
    surplus = 1 + kept + rounds - out.lengths
    assert (surplus >= 0).all() and (surplus <= engine.tree.depth).all()
    assert (stats.proposed <= 5 * rounds).all() and (stats.proposed > 0).all()
    assert (kept <= stats.proposed).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: StoppingCriteria.create(2, max_new_tokens=0),
            "max_new_tokens=0 is impossible; use a whole number",
        ),
        (
            lambda: StoppingCriteria.create(2, max_new_tokens=[3, (1 << 32) + 1]),
            "max_new_tokens=4294967297 is impossible",
        ),
        (
            lambda: StoppingCriteria.create(2, max_new_tokens=2.5),
            "max_new_tokens=2.5 is impossible",
        ),
        (
            lambda: StoppingCriteria.create(2, max_new_tokens=float("nan")),
            "max_new_tokens=nan is impossible",
        ),
        (
            lambda: StoppingCriteria.create(1, max_new_tokens=3, stop_tokens=[-2]),
            "stop_tokens=-2 is impossible",
        ),
        (
            lambda: StoppingCriteria.create(
                1, max_new_tokens=3, stop_tokens=[(1 << 32) + 1]
            ),
            "stop_tokens=4294967297 is impossible",
        ),
    ],
)
def test_impossible_limits_raise_a_clear_error(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.slow
def test_a_buffer_that_is_filled_exactly_keeps_every_token():
    """The last path may reach beyond the budget; nothing committed is overwritten."""
    target, rows = toy_target(VOCAB), 2
    sampling, keys = Sampling.create(rows), batch_keys(5, rows)
    prompt = jnp.zeros(rows, jnp.int32)
    known = runner(1)(Variables(PARAMS), prompt, sampling=sampling, keys=keys)
    for length in (1, 2, 8, 9):
        engine = Engine(
            target, length, NoisyOracle(VOCAB), Tree.chain(7), order=("temperature",)
        )
        oracle = {"tokens": known.tokens, "spoil": 0.0}
        run = jax.jit(engine.generate)
        fast = run(Variables(PARAMS, oracle), prompt, sampling=sampling, keys=keys)
        np.testing.assert_array_equal(fast.tokens, known.tokens[:, :length])


@dataclass(frozen=True)
class Oracle(NoisyOracle):
    """Drafts the given tokens, all of them valid."""

    def propose(self, params, state, ctx):
        draft, state = super().propose(params, state, ctx)
        return replace(draft, valid=jnp.ones_like(draft.valid)), state


def test_a_sequence_may_end_anywhere_on_an_accepted_path():
    """At the prefill, anywhere on a path, at its extra token; with two stop tokens."""
    length, vocab, depth = 14, 97, 3
    params, target = toy_params(vocab, length + 20), toy_target(vocab)
    prompt, keys = (
        jnp.zeros(length, jnp.int32),
        batch_keys(1, 1)[jnp.zeros(length, int)],
    )
    sampling = Sampling.create(length, temperature=50.0)  # seldom the same token twice
    order = ("temperature",)
    engine = Engine(target, length, Oracle(vocab), Tree.chain(depth), order=order)
    run = jax.jit(engine.generate)

    def go(known, stop):
        oracle = {"tokens": jnp.asarray(known), "spoil": 0.0}
        stopping = StoppingCriteria.create(
            length, max_new_tokens=length, stop_tokens=stop
        )
        return run(
            Variables(params, oracle),
            prompt,
            sampling=sampling,
            keys=keys,
            stopping=stopping,
        )

    # All sequences are equal; sequence i has to stop at token i.
    tokens = np.asarray(go(jnp.zeros((length, length), int), [-1, -1]).tokens)
    own = tokens[0].tolist()
    assert (tokens == own).all() and len(set(own)) > length - 3
    unused = next(x for x in range(vocab) if x not in own)
    for stops in (
        [(x, unused) for x in own],
        [(-1, x) for x in own],
        list(zip(own, own[1:] + own[:1], strict=True)),  # the next one, too
    ):
        ends = np.array([min(own.index(x) for x in two if x in own) for two in stops])
        assert len(set(ends % (depth + 1))) == depth + 1  # every position of a path
        out = go(tokens, stops)
        np.testing.assert_array_equal(out.lengths, ends + 1)
        kept = np.arange(length) <= ends[:, None]
        np.testing.assert_array_equal(out.tokens, np.where(kept, tokens, -1))
        # The prefill, and rounds of a whole path: none after the stop.
        np.testing.assert_array_equal(out.stats.calls, 1 + -(-ends // (depth + 1)))


def test_a_cache_without_room_for_the_tree_is_detected():
    """Writes beyond the end of a cache are silently moved back over committed slots.

    The capacity that the engine requests is enough. Three slots less are not: a round
    needs them if its root is the last token but one.
    """
    rows, tree, target = 64, Tree.chain(4), toy_target(VOCAB)
    prompt, keys = jnp.zeros(rows, jnp.int32), batch_keys(7, rows)
    sampling = Sampling.create(rows)
    run = runner(1)
    plain = run(Variables(PARAMS), prompt, sampling=sampling, keys=keys).tokens

    def tokens(missing):
        def prefill(params, prompt, extra):
            return target.prefill(params, prompt, extra - missing)

        short, order = replace(target, prefill=prefill), ("temperature",)
        engine = Engine(short, LENGTH, NoisyOracle(VOCAB), tree, order=order)
        oracle = {"tokens": plain, "spoil": 0.6}
        run = jax.jit(engine.generate)
        return run(
            Variables(PARAMS, oracle), prompt, sampling=sampling, keys=keys
        ).tokens

    np.testing.assert_array_equal(tokens(0), plain)
    assert (tokens(3) != plain).any()
