"""Engine: equality with plain decoding, output distribution, near-ties and errors."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.core.noise import batch_keys
from jaxspec.core.precision import use_x64
from jaxspec.core.sampling import Sampling, active_steps
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, GreedySet, KSeq, Rejection
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import NoisyOracle, toy_params, toy_target
from tests.speculative.drifting import drifting
from tests.speculative.trees.random_trees import trees

VOCAB, LENGTH = 5, 17
PLAIN = ("temperature",)  # no filter to compile
PARAMS = toy_params(VOCAB, LENGTH + 40)


def plain_tokens(target, prompt, sampling, keys):
    engine = Engine(target, LENGTH, order=active_steps(sampling))
    run = jax.jit(engine.generate)
    return run(Variables(PARAMS), prompt, sampling=sampling, keys=keys)


@settings(max_examples=4)
@given(
    tree=trees(10).filter(lambda tree: tree.size > 1),
    rows=st.integers(1, 5),
    spoil=st.sampled_from([0.0, 0.3, 1.0]),
    branches=st.sampled_from([1, 2]),
    filtered=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_draft_on_any_tree_gives_the_tokens_of_plain_decoding(
    tree, rows, spoil, branches, filtered, seed
):
    target = toy_target(VOCAB, branches)
    prompt = jnp.arange(rows) % VOCAB
    # Greedy and sampled sequences; filters and scales differ by sequence.
    sampling = Sampling.create(
        rows,
        temperature=np.resize([1.0, 0.0, 0.7, 2.0], rows),
        top_k=np.resize([0, 0, 3], rows) if filtered else 0,
        top_p=np.resize([1.0, 1.0, 1.0, 0.8], rows) if filtered else 1.0,
        cfg_scale=np.resize([3.0, 1.0, 0.5], rows),
        cfg_interval=np.resize([-1, 4], rows),
    )
    keys = batch_keys(seed, rows)
    plain = plain_tokens(target, prompt, sampling, keys)
    order = active_steps(sampling)
    engine = Engine(target, LENGTH, NoisyOracle(VOCAB, seed), tree, order=order)
    drafter_params = {"tokens": plain.tokens, "spoil": spoil}
    fast = jax.jit(engine.generate)(
        Variables(PARAMS, drafter_params), prompt, sampling=sampling, keys=keys
    )
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert (fast.stats.calls <= plain.stats.calls).all()
    assert (plain.stats.calls == LENGTH).all()


def test_a_perfect_drafter_gets_its_whole_path_accepted_every_round():
    target, rows = toy_target(VOCAB), 3
    prompt, keys = jnp.arange(rows), batch_keys(0, rows)
    sampling = Sampling.create(rows)
    plain = plain_tokens(target, prompt, sampling, keys)

    @dataclass(frozen=True)
    class Perfect(NoisyOracle):
        def propose(self, params, state, ctx):
            draft, state = super().propose(params, state, ctx)
            return replace(draft, valid=jnp.ones_like(draft.valid)), state

    engine = Engine(target, LENGTH, Perfect(VOCAB), Tree.chain(3), order=PLAIN)
    drafter_params = {"tokens": plain.tokens, "spoil": 0.0}
    fast = engine.generate(
        Variables(PARAMS, drafter_params), prompt, sampling=sampling, keys=keys
    )
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    # One prefill for the first token, then four tokens a call.
    assert fast.stats.calls.tolist() == [1 + (LENGTH - 1) // 4] * rows
    assert fast.stats.accepted.tolist() == [[0, 0, 0, 4]] * rows
    assert fast.stats.hits.tolist() == [[[4], [4], [4]]] * rows


def test_a_sequence_does_not_depend_on_the_rest_of_its_batch():
    target, rows = toy_target(VOCAB, 2), 6
    prompt, keys = jnp.arange(rows) % VOCAB, batch_keys(3, rows)
    sampling = Sampling.create(rows, cfg_scale=2.0)
    together = plain_tokens(target, prompt, sampling, keys).tokens
    order = jnp.array([4, 0, 5])
    some = Sampling.create(3, cfg_scale=2.0)
    apart = plain_tokens(target, prompt[order], some, keys[order]).tokens
    np.testing.assert_array_equal(together[order], apart)


@pytest.mark.slow
def test_sequences_advance_independently():
    target, rows = toy_target(VOCAB), 2
    prompt, keys = jnp.zeros(rows, jnp.int32), batch_keys(1, rows)
    sampling = Sampling.create(rows)
    plain = plain_tokens(target, prompt, sampling, keys)
    engine = Engine(target, LENGTH, NoisyOracle(VOCAB), Tree.chain(4), order=PLAIN)
    # The drafts of sequence 1 are always wrong, those of sequence 0 never.
    drafter_params = {"tokens": plain.tokens, "spoil": jnp.array([[0.0], [1.0]])}
    fast = engine.generate(
        Variables(PARAMS, drafter_params), prompt, sampling=sampling, keys=keys
    )
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert fast.stats.calls[0] < fast.stats.calls[1] / 2
    assert fast.stats.rounds == fast.stats.calls.max() - 1


def test_output_follows_the_target_distribution():
    """Frequencies of all sequences of three tokens, with a control."""
    target, rows = toy_target(VOCAB), 20000
    prompt = jnp.zeros(rows, jnp.int32)
    tree = Tree.named("0,1,00,01")
    engine = Engine(target, 3, NoisyOracle(VOCAB), tree, order=PLAIN)
    drafter_params = {"tokens": jnp.ones((rows, 3), jnp.int32), "spoil": 0.5}
    run = jax.jit(engine.generate)
    sampling = Sampling.create(rows)
    tokens = np.asarray(
        run(
            Variables(PARAMS, drafter_params),
            prompt,
            sampling=sampling,
            keys=batch_keys(0, rows),
        ).tokens
    )

    def conditional(prefix):
        padded = jnp.array([prefix + [0] * (3 - len(prefix))])
        index = jnp.array([len(prefix)])
        logits = target.rescore(PARAMS, prompt[:1], padded, index)
        return np.asarray(jax.nn.softmax(logits[0]), np.float64)

    expected = np.zeros((VOCAB,) * 3)
    for a in range(VOCAB):
        for b in range(VOCAB):
            expected[a, b] = (
                conditional([])[a] * conditional([a])[b] * conditional([a, b])
            )
    seen = np.zeros_like(expected)
    np.add.at(seen, tuple(tokens.T), 1)

    def statistic(counts):
        return ((counts - rows * expected) ** 2 / (rows * expected)).sum()

    freedom = expected.size - 1
    bound = freedom + 5 * np.sqrt(2 * freedom)
    assert statistic(seen) < bound
    # Control: three percent of the last tokens are replaced.
    changed = tokens.copy()
    changed[:600, 2] = 0
    wrong = np.zeros_like(expected)
    np.add.at(wrong, tuple(changed.T), 1)
    assert statistic(wrong) > bound


def test_a_verifier_that_accepts_everything_is_caught():
    @dataclass(frozen=True)
    class AcceptAll(Coupled):
        def verify(self, log_p, draft, tree, noise, params=None, features=None):
            verdict = super().verify(log_p, draft, tree, noise)
            last = jnp.full_like(verdict.accepted, tree.size - 1)
            path = jnp.asarray(tree.paths)[last]
            accepted = jnp.full_like(last, tree.depth)
            return replace(verdict, path=path, accepted=accepted)

    target, rows = toy_target(VOCAB), 4
    prompt, keys = jnp.zeros(rows, jnp.int32), batch_keys(1, rows)
    sampling = Sampling.create(rows)
    plain = plain_tokens(target, prompt, sampling, keys)
    engine = Engine(
        target, LENGTH, NoisyOracle(VOCAB), Tree.chain(3), AcceptAll(), PLAIN, 0.0
    )
    drafter_params = {"tokens": plain.tokens, "spoil": 0.5}
    fast = engine.generate(
        Variables(PARAMS, drafter_params), prompt, sampling=sampling, keys=keys
    )
    assert (fast.tokens != plain.tokens).any()


def test_cache_after_a_run_equals_a_fresh_pass_over_the_output():
    target, rows = toy_target(VOCAB), 3
    prompt, keys = jnp.arange(rows), batch_keys(5, rows)
    sampling = Sampling.create(rows)
    plain = plain_tokens(target, prompt, sampling, keys)
    tree = Tree.named("mc_sim_7b_63")
    engine = Engine(target, LENGTH, NoisyOracle(VOCAB), tree, order=PLAIN)
    variables = Variables(PARAMS, {"tokens": plain.tokens, "spoil": 0.5})
    state = engine.init(variables, prompt, sampling=sampling, keys=keys)
    step = jax.jit(engine.step)
    while (state.length < LENGTH).any():
        state = step(variables, state)
    state = step(variables, state)  # commits the last path; nothing else is live
    np.testing.assert_array_equal(state.cache.lengths, LENGTH)
    stream = jnp.concatenate([prompt[:, None], plain.tokens[:, :-1]], axis=1)
    fresh = PARAMS["values"][stream, jnp.arange(LENGTH)]
    np.testing.assert_array_equal(state.cache.layers[0][0][:, 0, :LENGTH], fresh)


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("settings", "margin", "same"),
    [
        ({"top_k": 2}, 0.1, True),
        ({}, 0.1, True),
        # The control: without a margin, tokens change.
        ({}, 0.0, False),
        ({"top_k": 3, "top_p": 0.8}, 0.1, True),
        ({"cfg_scale": 4.0, "temperature": 0.5, "top_p": 0.9}, 0.1, True),
    ],
    ids=str,
)
def test_near_ties_are_rescored_so_that_rounding_cannot_change_a_token(
    settings, margin, same
):
    """Rounding differences of wide passes, enlarged until they change tokens.

    At the edge of a filter, rounding can remove or add a token that would win by a
    wide margin; guidance and a low temperature enlarge rounding differences.
    """
    rows = 64
    target = drifting(toy_target(VOCAB, 2), 0.03)
    prompt, keys = jnp.zeros(rows, jnp.int32), batch_keys(0, rows)
    sampling = Sampling.create(rows, **settings)

    def run(drafter, tree, drafter_params):
        order = active_steps(sampling)
        engine = Engine(target, LENGTH, drafter, tree, order=order, tie_margin=margin)
        return jax.jit(engine.generate)(
            Variables(PARAMS, drafter_params), prompt, sampling=sampling, keys=keys
        )

    plain = run(None, Tree.root(), None)
    oracle = {"tokens": plain.tokens, "spoil": 0.2}
    fast = run(NoisyOracle(VOCAB), Tree.chain(3), oracle)
    assert bool((fast.tokens == plain.tokens).all()) == same
    assert bool(fast.stats.rescored.sum() > 0) == same


def test_nan_logits_are_reported():
    """NaN of either sign is reported for its sequence, also under filters."""
    engine = Engine(toy_target(VOCAB), 4, order=("top_k", "temperature"))
    run = jax.jit(engine.generate)
    prompt, keys = jnp.array([0, 1]), batch_keys(0, 2)
    sampling = Sampling.create(2, top_k=[0, 3])
    assert run(Variables(PARAMS), prompt, sampling=sampling, keys=keys).finite.all()
    for nan in (jnp.nan, -jnp.nan):
        # Token 1 is the prompt of the second sequence.
        values = PARAMS["values"].at[1].set(nan)
        out = run(
            Variables({**PARAMS, "values": values}),
            prompt,
            sampling=sampling,
            keys=keys,
        )
        assert not out.finite[1]
        assert out.finite[0] or 1 in out.tokens[0]
        head = PARAMS["head"].at[:, 2].set(nan)
        out = run(
            Variables({**PARAMS, "head": head}), prompt, sampling=sampling, keys=keys
        )
        assert not out.finite.any()


def test_arguments_of_different_batch_sizes_are_refused():
    engine = Engine(toy_target(VOCAB), 4)
    prompt, keys = jnp.zeros(2, jnp.int32), batch_keys(0, 2)
    good = {"prompt": prompt, "sampling": Sampling.create(2), "keys": keys}
    for name, wrong, words in [
        (
            "prompt",
            prompt[:1],
            r"prompt has an array of shape \(1,\), but there are 2",
        ),
        ("sampling", Sampling.create(1), r"temperature has shape \(1,\)"),
        ("keys", batch_keys(0, 3), "each of the 3 sequences"),
        (
            "stopping",
            StoppingCriteria.create(3, max_new_tokens=4),
            "max_new_tokens has",
        ),
    ]:
        with pytest.raises(ConfigError, match=words):
            engine.generate(Variables(PARAMS), **{**good, name: wrong})


@pytest.mark.slow
def test_programs_in_double_precision_may_call_the_engine():
    """Integers and scores keep their types, so the tokens are the same."""
    prompt, keys, sampling = (
        jnp.zeros(2, jnp.int32),
        batch_keys(0, 2),
        Sampling.create(2),
    )
    table = {"table": jax.random.normal(jax.random.key(0), (1, VOCAB, VOCAB))}
    tree = Tree.named("0,1,00")
    engine = Engine(toy_target(VOCAB), 9, TableDrafter(), tree)
    wanted = engine.generate(
        Variables(PARAMS, table), prompt, sampling=sampling, keys=keys
    )
    with use_x64(True):
        run = jax.jit(engine.generate)
        found = run(Variables(PARAMS, table), prompt, sampling=sampling, keys=keys)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert found.tokens.dtype == jnp.int32


def test_arrays_of_the_caller_survive_a_donated_round():
    engine = Engine(toy_target(VOCAB), 4, NoisyOracle(VOCAB), Tree.chain(2))
    keys, sampling, prompt = (
        batch_keys(0, 2),
        Sampling.create(2),
        jnp.zeros(2, jnp.int32),
    )
    stopping = StoppingCriteria.create(2, max_new_tokens=4, stop_tokens=[3])
    oracle = {"tokens": jnp.zeros((2, 8), jnp.int32), "spoil": 0.5}
    variables = Variables(PARAMS, oracle)
    state = engine.init(
        variables, prompt, sampling=sampling, keys=keys, stopping=stopping
    )
    step = jax.jit(engine.step, donate_argnums=1)
    step(variables, state)
    for leaf in jax.tree.leaves((stopping, keys, variables, prompt, sampling)):
        assert not leaf.is_deleted() if isinstance(leaf, jax.Array) else True


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "order", [("temperature", "top_k", "top_p"), ("top_p", "top_k")]
)
def test_a_margin_of_zero_rescores_nothing(order):
    """Also for tokens at the edges of filters, which are near-ties at any margin."""
    target, rows = toy_target(VOCAB), 8
    coarse = {**PARAMS, "head": jnp.round(2 * PARAMS["head"]) / 2}
    prompt, keys = jnp.arange(rows) % VOCAB, batch_keys(3, rows)
    sampling = Sampling.create(rows, top_k=3, top_p=0.8)

    def run(drafter, tree, oracle):
        engine = Engine(target, LENGTH, drafter, tree, order=order, tie_margin=0.0)
        run = jax.jit(engine.generate)
        return run(Variables(coarse, oracle), prompt, sampling=sampling, keys=keys)

    plain = run(None, Tree.root(), None)
    oracle = {"tokens": plain.tokens, "spoil": 0.3}
    fast = run(NoisyOracle(VOCAB), Tree.chain(3), oracle)
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert fast.stats.rescored.sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "verifier", [Rejection(), KSeq(), GreedySet(), Coupled()], ids=str
)
def test_every_lossless_verifier_decodes_without_drafts(verifier):
    engine = Engine(toy_target(VOCAB), 6, verifier=verifier)
    alone = Engine(toy_target(VOCAB), 6, TableDrafter(), Tree.root(), verifier)
    prompt, keys = jnp.zeros(2, jnp.int32), batch_keys(0, 2)
    table = {"table": jnp.zeros((1, VOCAB, VOCAB))}
    out = engine.generate(
        Variables(PARAMS), prompt, sampling=Sampling.create(2), keys=keys
    )
    same = alone.generate(
        Variables(PARAMS, table), prompt, sampling=Sampling.create(2), keys=keys
    )
    np.testing.assert_array_equal(out.tokens, same.tokens)


def test_impossible_engines_raise_a_clear_error():
    target = toy_target(VOCAB)
    with pytest.raises(ConfigError, match="needs a drafter"):
        Engine(target, 4, tree=Tree.chain(2))
    for wrong, words in (
        ({"order": ("topk",)}, "order has the step 'topk'"),
        ({"selection": "best"}, "selection='best'"),
        ({"tree": Tree}, "tree=Tree is no tree"),
        ({"verifier": "coupled"}, "verifier='coupled' is no verifier"),
        ({"verifier": Coupled}, "is no verifier; use an instance"),
    ):
        with pytest.raises(ConfigError, match=words):
            Engine(target, 4, **wrong)  # type: ignore
    with pytest.raises(ConfigError, match="max_new_tokens=0"):
        Engine(target, 0)


@pytest.mark.slow
@pytest.mark.parametrize("cache_stages", [3])
def test_a_cache_that_grows_changes_no_token(cache_stages):
    """Passes of each stage read a cache with room for the tokens of this stage."""
    seen = []

    def watched(forward):
        def run(params, cache, tokens, positions, mask):
            seen.append(cache.capacity)
            return forward(params, cache, tokens, positions, mask)

        return run

    rows, tree = 4, Tree.named("mc_sim_7b_63")
    target = toy_target(VOCAB, 2)
    prompt, sampling = jnp.arange(rows), Sampling.create(rows, cfg_scale=2.0)
    keys = batch_keys(3, rows)
    plain = plain_tokens(target, prompt, sampling, keys)
    engine = Engine(
        replace(target, forward=watched(target.forward)),
        LENGTH,
        NoisyOracle(VOCAB, 0),
        tree,
        order=PLAIN,
        cache_stages=cache_stages,
    )
    stopping = StoppingCriteria.create(
        rows, max_new_tokens=np.array([LENGTH, 2, 9, LENGTH])
    )
    run = jax.jit(engine.generate)
    oracle = {"tokens": plain.tokens, "spoil": 0.3}
    fast = run(
        Variables(PARAMS, oracle),
        prompt,
        sampling=sampling,
        keys=keys,
        stopping=stopping,
    )
    inside = np.arange(LENGTH) < np.asarray(stopping.max_new_tokens)[:, None]
    np.testing.assert_array_equal(fast.tokens, np.where(inside, plain.tokens, -1))
    sizes = sorted(set(seen))
    assert len(sizes) == cache_stages
    assert sizes[-1] - sizes[0] == LENGTH - LENGTH // cache_stages


def test_cache_stages_have_tokens():
    with pytest.raises(
        ConfigError, match="cache_stages=18 must be 1 to max_new_tokens=17"
    ):
        Engine(toy_target(VOCAB, 1), LENGTH, cache_stages=LENGTH + 1)
