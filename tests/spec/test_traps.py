"""Traps of speculative decoding that no other test would fall into; see docs/traps.md.

Each test holds the library to what is right, and most have a control that shows that
the mistake would be seen.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.bench import generation
from jaxspec.core.logits import process_logits
from jaxspec.core.noise import batch_keys, draw_noise, position_noise, private_keys
from jaxspec.core.sampling import LLAMAGEN_ORDER, Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.tree_drafting import grow
from jaxspec.drafters.tree_drafting.select import private_noise
from jaxspec.models.transformer.model import Transformer
from jaxspec.nn.layers import RMSNorm
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.generation import GenerationResult
from jaxspec.pipeline.timing import Timing
from jaxspec.speculative.draft import Draft, DraftContext
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, BestFirst
from jaxspec.speculative.trees.topology import static_topology
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Rejection
from jaxspec.speculative.verify.outcome import Outcome
from jaxspec.speculative.verify.outcome import sample_outcome as draw_from_law
from jaxspec.testing.drafts import Conditionals, Drafts, all_drafts
from jaxspec.testing.enumeration import assert_lossless
from jaxspec.testing.table_drafter import TableDrafter, table_step
from jaxspec.testing.toy import NoisyOracle, toy_params, toy_target
from tests.drafters.test_block_diffusion import TARGET, make
from tests.models.test_transformer import TINY
from tests.models.tiny import random_params
from tests.spec import test_limits
from tests.spec.noises import Given
from tests.spec.test_guarantees import EVERY_RULE, batch, compiled, random_laws
from tests.spec.test_rules_in_the_loop import misfit

# A transformer and its block drafter, in both streams of guidance.

LENGTH, DEPTH = TARGET.grid**2, 3
CLASSES = jnp.array([0, 2, 1])
ROWS = len(CLASSES)


@dataclass(frozen=True)
class Prompter:
    """A block drafter some of whose guesses are replaced by given tokens.

    Parameters: the drafter's, "truth" [B, T] and "depths" int32 [B]: guesses up to that
    depth are the true tokens, the next is false. -1 leaves all guesses alone.
    """

    inner: DFlash

    def init(self, params, ctx):
        return self.inner.init(params["inner"], ctx)

    def propose(self, params, state, ctx):
        draft, state = self.inner.propose(params["inner"], state, ctx)
        depths = jnp.asarray(ctx.tree.depths)
        place = jnp.minimum(ctx.index[:, None] - 1 + depths, LENGTH - 1)
        truth = jnp.take_along_axis(params["truth"], place, axis=1)
        false = (truth + 1) % TARGET.vocab_size
        wanted = params["depths"][:, None]
        told = jnp.where(depths <= wanted, truth, false).at[:, 0].set(ctx.root)
        tokens = jnp.where(wanted >= 0, told, draft.tokens)
        return replace(draft, tokens=tokens), state

    def observe(self, params, state, result):
        return self.inner.observe(params["inner"], state, result)


@lru_cache
def world():
    """The engine, compiled: `start(stop)` and `step(told, state)`."""
    inner, own, params = make()
    target = Transformer(TARGET).as_target(
        cfg=True, feature_layers=inner.config.feature_layers
    )
    tree = Tree.chain(DEPTH)
    order = ("temperature",)
    engine = Engine(target, LENGTH, Prompter(inner), tree, order=order, tie_margin=0.0)
    bound, sampling = (
        inner.with_target_params(own, params),
        Sampling.create(ROWS, cfg_scale=2.0),
    )
    nothing = {"truth": jnp.zeros((ROWS, LENGTH), int), "depths": -jnp.ones(ROWS, int)}

    keys = batch_keys(0, ROWS)

    def given(told):
        return Variables(params, {"inner": bound, **told})

    start, step = jax.jit(engine.init), jax.jit(engine.step)
    return SimpleNamespace(
        engine=engine,
        inner=inner,
        bound=bound,
        params=params,
        nothing=nothing,
        start=lambda stop: start(
            given(nothing),
            CLASSES,
            sampling=sampling,
            keys=keys,
            stopping=StoppingCriteria.create(
                ROWS, max_new_tokens=LENGTH, stop_tokens=stop
            ),
        ),
        step=lambda told, state: step(given(told), state),
    )


def to_the_end(told, between=lambda state: state, stop=((-1,),) * ROWS):
    w = world()
    state = w.start(stop)
    while not bool(state.done.all()):
        state = w.step(told, between(state))
    return state


@lru_cache
def unaided():
    """The last state of a run on the drafter's own guesses."""
    return to_the_end(world().nothing)


def with_junk(state):
    """Overwrites what nobody may read any more, in every cache."""
    streams = world().engine.target.branches
    path, counts = (jnp.concatenate([x] * streams) for x in (state.path, state.counts))

    def spoil(cache, kept):
        layers = jax.tree.map(
            lambda x: jnp.where(kept[:, None, :, None], x, 1e4), cache.layers
        )
        return replace(cache, layers=layers)

    slots = jnp.arange(state.cache.capacity)
    lengths = state.cache.lengths[:, None]
    accepted = jnp.arange(path.shape[1]) < counts[:, None]
    on_path = (slots[:, None] == lengths[..., None] + path[:, None]) & accepted[:, None]
    cache = spoil(state.cache, (slots < lengths) | on_path.any(-1))
    own = state.drafter
    real = jnp.arange(own.pending.shape[1]) < own.counts[:, None]
    drafter = replace(
        own,
        cache=spoil(
            own.cache, jnp.arange(own.cache.capacity) < own.cache.lengths[:, None]
        ),
        pending=jnp.where(real[..., None], own.pending, 1e4),
    )
    return replace(state, cache=cache, drafter=drafter)


def test_nobody_reads_what_rejected_drafts_left_behind():
    """Junk in every slot that is not committed changes no token and no draft."""
    clean, spoilt = unaided(), to_the_end(world().nothing, with_junk)
    np.testing.assert_array_equal(spoilt.tokens[:, :LENGTH], clean.tokens[:, :LENGTH])
    # The drafter's guesses are the same too: as many were accepted, at the same places.
    np.testing.assert_array_equal(spoilt.stats.accepted, clean.stats.accepted)
    assert 0 < int(clean.stats.hits.sum()) < int(clean.stats.proposed.sum())

    def too_much(state):  # the control: one committed slot is junk, too
        state = with_junk(state)
        layers = jax.tree.map(lambda x: x.at[:, :, 1].set(1e4), state.cache.layers)
        return replace(state, cache=replace(state.cache, layers=layers))

    broken = to_the_end(world().nothing, too_much)
    assert (broken.tokens[:, :LENGTH] != clean.tokens[:, :LENGTH]).any()


def drafter_cache(state):
    """The drafter's cache once the last path is committed, as in its next round."""
    w, own = world(), state.drafter
    return w.inner._commit(w.bound, own.cache, own.pending, own.counts)


def fresh_contexts(tokens):
    """Keys and values of the target's own features of whole rows, for each layer."""
    w = world()
    null = jnp.arange(2 * ROWS) >= ROWS
    twice = jnp.concatenate([tokens[:, : LENGTH - 1]] * 2)
    _, features = Transformer(TARGET).score(
        w.params,
        jnp.tile(CLASSES, 2),
        twice,
        null=null,
        feature_layers=w.inner.config.feature_layers,
    )
    positions = jnp.broadcast_to(jnp.arange(LENGTH), features.shape[:2])
    network = w.inner.network(w.bound["own"])
    return network.context(features, w.inner.angles(positions))


def test_the_drafter_knows_every_position_also_after_full_acceptance():
    """Its cache is that of the target's features, whatever the tree held.

    One row has its whole path accepted in each round, so that the drafter has to learn
    of all its nodes; one is cut in the middle; one has everything rejected, and nothing
    of its trees may remain.
    """
    truth = unaided().tokens[:, :LENGTH]
    told = {"truth": truth, "depths": jnp.array([DEPTH, 1, 0])}
    state = to_the_end(told)
    np.testing.assert_array_equal(state.tokens[:, :LENGTH], truth)
    rounds = np.asarray(state.stats.accepted)
    assert rounds[0, DEPTH] == rounds[0].sum() and rounds[2, 0] == rounds[2].sum()
    assert rounds[1, 1] == rounds[1].sum()
    cache = drafter_cache(state)
    assert (cache.lengths == LENGTH).all()  # the class, and all tokens but the newest
    fresh = fresh_contexts(truth)
    off_by_one = []
    for mine, theirs in zip(cache.layers, fresh, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a[:, :, :LENGTH], b, atol=2e-5)
            shifted = np.abs(a[:, :, 1:LENGTH] - b[:, :, :-1]).max((1, 3))
            off_by_one.append(shifted.min())
    assert min(off_by_one) > 1e-2  # the tolerance tells one position from the next


def settled(state):
    """All of a state that means anything."""

    def committed(cache):
        kept = jnp.arange(cache.capacity) < cache.lengths[:, None]
        kept = kept[:, None, :, None]
        layers = jax.tree.map(lambda x: jnp.where(kept, x, 0), cache.layers)
        return replace(cache, layers=layers)

    kept = jnp.arange(state.tokens.shape[1]) < state.length[:, None]
    return replace(
        state,
        tokens=jnp.where(kept, state.tokens, -1),
        cache=committed(state.cache),
        drafter=(committed(state.drafter.cache), state.drafter.counts),
        path=None,
        keys=jax.random.key_data(state.keys),
        stats=replace(state.stats, rounds=None),
    )


def test_a_finished_row_stays_as_it_is():
    """After its budget, and after a token that ended it long before."""
    w, tokens = world(), unaided().tokens
    state = to_the_end(w.nothing, stop=[[-1], [int(tokens[1, 5])], [-1]])
    assert state.length[0] == LENGTH and state.length[1] <= 6
    state = w.step(w.nothing, state)  # commits what the last round accepted
    assert (state.cache.lengths == jnp.tile(state.length, 2)).all()
    after = w.step(w.nothing, w.step(w.nothing, state))
    jax.tree.map(np.testing.assert_array_equal, settled(after), settled(state))


# The program as it is traced.


def equations(jaxpr):
    """All equations of a traced program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@lru_cache
def traced(tree):
    """Equations of a whole generation, and the shapes they are traced with."""
    drafter, own, params = make()
    target = Transformer(TARGET).as_target(
        cfg=True, feature_layers=drafter.config.feature_layers
    )
    engine = Engine(target, LENGTH, drafter, tree)
    program = jax.make_jaxpr(engine.generate)(
        engine.variables(params, own),
        CLASSES,
        sampling=Sampling.create(cfg_scale=2.0),
        keys=batch_keys(0, ROWS),
    )
    return list(equations(program.jaxpr))


def imprecise(found):
    """Products of float32 numbers that a device may compute with fewer bits."""
    highest = (jax.lax.Precision.HIGHEST,) * 2
    return [
        e
        for e in found
        if e.primitive.name == "dot_general"
        and any(x.aval.dtype == jnp.float32 for x in e.invars)
        and e.params["precision"] != highest
    ]


def test_float32_products_have_all_their_bits():
    """What separates passes of different width is rounding, not TF32 or bfloat16."""
    found = traced(Tree.named("0,1,00"))
    assert sum(e.primitive.name == "dot_general" for e in found) > 20
    assert imprecise(found) == []
    params = random_params(TINY)
    bare = jax.make_jaxpr(partial(Transformer(TINY).score, params, jnp.zeros(1, int)))
    bare = bare(jnp.zeros((1, 4), jnp.int32))
    assert imprecise(equations(bare.jaxpr)) != []


@pytest.mark.parametrize(
    "tree", [Tree.named("0,1,00"), Beam(6, 3, 4, 3), BestFirst(6, 3)], ids=str
)
def test_what_is_added_up_by_scatters_is_whole_numbers(tree):
    """Sums of floats would depend on the order in which duplicates arrive."""
    adds = [
        e for e in traced(tree) if e.primitive.name in ("scatter-add", "scatter_add")
    ]
    assert adds
    for equation in adds:
        assert jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.integer), equation


def test_taps_are_outputs_of_layers():
    """Tap i is what a model of i + 1 layers hands to its last norm and head."""
    params, config = random_params(TINY), TINY
    tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6, 5]])
    label = jnp.array([2])

    def score(config, **options):
        own = {
            k: x
            for k, x in params.items()
            if not k.startswith("layers_") or int(k[7:]) < config.layers
        }
        model = Transformer(config)
        return jax.jit(partial(model.score, **options))(own, label, tokens)

    _, features = score(config, feature_layers=(0, 1))
    for layer, own in enumerate(jnp.split(features, 2, axis=-1)):
        logits, _ = score(replace(config, layers=layer + 1))
        norm = RMSNorm(config.norm_eps).apply({"params": params["norm"]}, own)
        np.testing.assert_allclose(norm @ params["head"], logits, atol=1e-5)


@dataclass(frozen=True)
class FromAllLayers:
    """A block drafter beside a target that shows all layers; its "feature_layers" are
    data."""

    inner: DFlash

    def chosen(self, params, features):
        layers = jnp.stack(jnp.split(features, self.inner.target.layers, -1), axis=-2)
        own = layers[..., params["feature_layers"], :]
        return own.reshape(*features.shape[:-1], -1)

    def init(self, params, ctx):
        ctx = replace(ctx, features=self.chosen(params, ctx.features))
        return self.inner.init(params["inner"], ctx)

    def propose(self, params, state, ctx):
        return self.inner.propose(params["inner"], state, ctx)

    def observe(self, params, state, result):
        result = replace(result, features=self.chosen(params, result.features))
        return self.inner.observe(params["inner"], state, result)


def test_a_drafter_that_reads_the_wrong_layers_is_seen_in_what_is_accepted():
    """Tokens stay right whatever it reads, so only the number of calls can tell."""
    bundle, rows = load_bundle(), 16
    inner, prior = bundle.drafter.config, bundle.prior
    every = tuple(range(inner.target.layers))
    target = Transformer(prior.config).as_target(cfg=True, feature_layers=every)
    drafter, order = FromAllLayers(inner), ("temperature",)
    engine = Engine(target, 64, drafter, Tree.chain(2), order=order, tie_margin=0.0)
    run, prompt = jax.jit(engine.generate), jnp.arange(0, 4 * rows, 4)
    sampling, keys = Sampling.create(rows, cfg_scale=2.0), batch_keys(0, rows)
    bound = inner.with_target_params(bundle.drafter.params, prior.params)

    def with_taps(feature_layers):
        params = {"inner": bound, "feature_layers": jnp.array(feature_layers)}
        out = run(Variables(prior.params, params), prompt, sampling=sampling, keys=keys)
        return out.tokens, float(out.lengths.sum() / out.stats.calls.sum())

    feature_layers = inner.config.feature_layers
    tokens, good = with_taps(feature_layers)
    for wrong in (tuple(layer - 1 for layer in feature_layers), feature_layers[::-1]):
        same, bad = with_taps(wrong)
        np.testing.assert_array_equal(same, tokens)
        assert bad < good - 0.05


# Ends.


@dataclass(frozen=True)
class Oracle(NoisyOracle):
    """Knows every token, and drafts without gaps."""

    def propose(self, params, state, ctx):
        draft, state = super().propose(params, state, ctx)
        return replace(draft, valid=jnp.ones_like(draft.valid)), state


def test_a_row_may_end_anywhere_on_an_accepted_path():
    """At the prefill, at each place of a path, at its extra token; one of two stops."""
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

    # All rows are the same row; row i is to stop at token i.
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
        assert len(set(ends % (depth + 1))) == depth + 1  # every place of a path
        out = go(tokens, stops)
        np.testing.assert_array_equal(out.lengths, ends + 1)
        kept = np.arange(length) <= ends[:, None]
        np.testing.assert_array_equal(out.tokens, np.where(kept, tokens, -1))
        # The prefill, and rounds of a whole path: none after the stop.
        np.testing.assert_array_equal(out.stats.calls, 1 + -(-ends // (depth + 1)))


def test_a_cache_without_room_for_the_tree_would_be_seen():
    """Writes that reach beyond a cache are moved back over committed slots, silently.

    What the engine asks for is enough. Three slots less are not: a round whose root is
    the last token but one needs them.
    """
    length, vocab, params = test_limits.LENGTH, test_limits.VOCAB, test_limits.PARAMS
    rows, tree, target = 64, Tree.chain(4), toy_target(test_limits.VOCAB)
    prompt, keys = jnp.zeros(rows, jnp.int32), batch_keys(7, rows)
    sampling = Sampling.create(rows)
    run = test_limits.runner(1)
    plain = run(Variables(params), prompt, sampling=sampling, keys=keys).tokens

    def tokens(missing):
        def prefill(params, prompt, extra):
            return target.prefill(params, prompt, extra - missing)

        short, order = replace(target, prefill=prefill), ("temperature",)
        engine = Engine(short, length, NoisyOracle(vocab), tree, order=order)
        oracle = {"tokens": plain, "spoil": 0.6}
        run = jax.jit(engine.generate)
        return run(
            Variables(params, oracle), prompt, sampling=sampling, keys=keys
        ).tokens

    np.testing.assert_array_equal(tokens(0), plain)
    assert (tokens(3) != plain).any()


# Coins and noise.


@EVERY_RULE
def test_no_coin_lets_an_impossible_token_through(verifier, selection, tree):
    """Noise that could not be worse: all of it on what must not be taken."""
    drafts = batch(random_laws(6, 3, 2, zeros=0.4), tree, selection)
    draft, tree, rows = drafts.draft, drafts.tree, np.arange(len(drafts.chance))
    never = drafts.log_p == -np.inf  # [B, N, V]
    banned = np.zeros(draft.tokens.shape, bool)
    for n in range(1, tree.size):
        parent = tree.parents[n]
        banned[:, n] = never[rows, parent, draft.tokens[:, n]] | ~draft.valid[:, n]
    below = (tree.ancestors & banned[:, None, :]).any(-1)  # or above it
    assert below.any() and never.any()
    noise = draw_noise(
        batch_keys(0, len(rows)),
        jnp.tile(jnp.arange(tree.depth + 1), (len(rows), 1)),
        tree.size,
        3,
    )
    at_depth = np.stack(
        [never[:, tree.levels[d]].any(1) for d in range(tree.depth + 1)], axis=1
    )
    for size in (1e3, 1e30):
        worst = replace(
            noise,
            coupled=jnp.where(at_depth, size, noise.coupled),
            fresh=Given(jnp.where(at_depth, size, noise.coupled)),
            nodes=jnp.where(below, size, noise.nodes),
        )
        verdict = compiled(verifier, "verify", tree)(drafts.log_p, draft, worst)
        last = np.asarray(verdict.path[:, -1])
        assert not below[rows, last].any()
        assert not never[rows, last, np.asarray(verdict.next_token)].any()


def test_chances_far_below_a_thousandth_are_met():
    """Both draws of a law, of a node and of a token, resolve a chance of 3e-5."""
    rows, rare, tree = 2_000_000, 3e-5, Tree.chain(1)

    @jax.jit
    def counts(keys):
        noise = draw_noise(keys, jnp.tile(jnp.arange(2), (rows, 1)), tree.size, 2)
        small = jnp.array([1 - rare, rare])
        law = Outcome(
            jnp.broadcast_to(small, (rows, 2)), jnp.broadcast_to(small, (rows, 2, 2))
        )
        verdict = draw_from_law(law, static_topology(tree), noise)
        return jnp.stack([verdict.accepted.sum(), verdict.next_token.sum()])

    found = np.asarray(counts(batch_keys(0, rows)))
    wanted = rare * rows  # 60; coins on a grid of 1e-4 would give 0 or 200
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted)).all(), found


def test_every_kind_of_draw_has_noise_of_its_own():
    """Verifier, coupling and drafter never see the same numbers."""
    vocab, size, keys = 2048, 3, batch_keys(5, 2)
    positions = 7 + jnp.arange(size)
    each = jnp.tile(positions, (2, 1))
    noise = draw_noise(keys, each, 4, vocab)
    nodes = [draw_noise(keys, each + i, vocab, 1).nodes for i in range(size)]
    sampling = Sampling.create(2)
    private = []
    for position in positions:
        ctx: Any = SimpleNamespace(
            keys=private_keys(keys, jnp.full(2, position)), sampling=sampling
        )
        private += [private_noise(ctx, depth, (vocab,)) for depth in range(size)]
    # [anything, V]: rows, positions, streams of draws.
    fresh = [noise.fresh.at(jnp.full(2, place)) for place in range(size)]
    drawn = [*noise.coupled.swapaxes(0, 1), *fresh]
    drawn = np.concatenate([*drawn, *nodes, *private])
    assert len(drawn) == 2 * (3 * size + size**2)
    between = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(between).max() < 6 / np.sqrt(vocab)
    # The control: the same position asked for twice is the same noise.
    again = position_noise(keys, each[:, 1:2], vocab)[:, 0]
    assert np.corrcoef(again[0], noise.coupled[0, 1])[0, 1] > 0.999


# Processing.


def test_temperature_comes_before_the_filters():
    """What top-p keeps depends on the temperature, so the order is part of the law."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))

    def kept(order=LLAMAGEN_ORDER, **settings):
        sampling = Sampling.create(1, temperature=2.0, **settings)
        return np.isfinite(process_logits(logits, sampling, order))[0].tolist()

    # Heated: .379 .294 .208 .120, and .431 .334 .236 of the first three.
    assert kept(top_p=0.7) == [True, True, True, False]
    assert kept(("top_p", "temperature"), top_p=0.7) == [True, True, False, False]
    # Top-p is applied to what top-k left, scaled to sum 1.
    assert kept(top_p=0.76) == [True, True, True, False]
    assert kept(top_k=3, top_p=0.76) == [True, True, False, False]


VOCAB = 6
FILTERS = dict(temperature=0.7, top_k=4, top_p=0.85)
TABLE = jax.random.normal(jax.random.key(1), (2, VOCAB, VOCAB))


@pytest.mark.parametrize("tree", [Tree.named("0,1,00"), BestFirst(5, 2)], ids=str)
def test_the_drafters_law_is_processed_as_the_targets(tree):
    rows = 8
    ctx = DraftContext(
        root=jnp.arange(rows) % VOCAB,
        tokens=jnp.zeros((rows, 1), jnp.int32),
        position=jnp.zeros(rows, jnp.int32),
        index=jnp.zeros(rows, jnp.int32),
        noise=jnp.zeros((rows, 3, VOCAB)),
        keys=batch_keys(0, rows),
        sampling=Sampling.create(rows, **FILTERS),
        tree=tree,
        selection="without_replacement",
    )

    draft = jax.jit(lambda ctx: grow(ctx, table_step(TABLE))[0])(ctx)
    shape = draft.topology(tree)
    internal = np.flatnonzero((np.asarray(shape.depths) < 2).all(0))
    internal = internal if shape.internal is None else np.array(shape.internal)
    for n in internal:
        logits = TABLE[np.asarray(shape.depths[..., n]), draft.tokens[:, n]]
        own = process_logits(logits, ctx.sampling, LLAMAGEN_ORDER)
        assert (own == -jnp.inf).any()
        slot = np.broadcast_to(shape.slots[:, n], rows)
        found = np.asarray(draft.log_q)[np.arange(rows), slot]
        np.testing.assert_allclose(found, jax.nn.log_softmax(own), atol=1e-5)


def exact_law(params, temperature, top_k, top_p):
    """The law of three tokens after prompt 0, from sorted float64 probabilities."""
    target, law = toy_target(VOCAB), np.ones(())
    for d in range(3):
        tokens = np.array(list(product(range(VOCAB), repeat=d)), int)
        tokens = np.pad(tokens.reshape(VOCAB**d, d), ((0, 0), (0, 3 - d)))
        zeros = jnp.zeros(len(tokens), jnp.int32)
        logits = target.rescore(params, zeros, jnp.asarray(tokens), zeros + d)
        heated = np.asarray(logits, np.float64) / temperature
        p = np.exp(heated - heated.max(-1, keepdims=True))
        for row in p:
            ranked = np.argsort(-row)
            row[ranked[top_k:]] = 0
            mass = np.cumsum(row[ranked]) / row.sum()
            row[ranked[np.searchsorted(mass, top_p) + 1 :]] = 0
        p = p / p.sum(-1, keepdims=True)
        law = law[..., None] * p.reshape((VOCAB,) * (d + 1))
    return law


@pytest.mark.parametrize("verifier", [Rejection(), Coupled()], ids=str)
def test_accepted_residual_and_extra_tokens_all_pass_the_same_filters(verifier):
    """With one level of drafts the third token is often the extra one after a leaf.

    The first comes from the prefill, and no draft could spoil it.
    """
    rows, params = 6000, toy_params(VOCAB, 12, seed=3)
    tree = Tree.named("0,1")
    engine = Engine(toy_target(VOCAB), 3, TableDrafter(), tree, verifier)
    run = jax.jit(engine.generate)
    prompt, sampling = jnp.zeros(rows, jnp.int32), Sampling.create(rows, **FILTERS)
    out = run(
        Variables(params, {"table": TABLE}),
        prompt,
        sampling=sampling,
        keys=batch_keys(0, rows),
    )
    tokens = np.asarray(out.tokens)
    accepted = out.stats.accepted[:, 1]
    assert ((out.stats.calls == 2) & (accepted == 1)).sum() > rows / 10
    law = exact_law(params, **FILTERS)
    assert misfit(tokens, law) < 5
    # Controls: rows whose third token skipped the temperature, or the filters.
    for other in (FILTERS | {"temperature": 1.0}, FILTERS | {"top_p": 1.0}):
        wrong = exact_law(params, **other)
        mixed = law.sum(-1, keepdims=True) * wrong
        mixed = mixed / np.maximum(wrong.sum(-1, keepdims=True), 1e-300)
        assert misfit(tokens, mixed) > 10


# What a draft may hold.


@EVERY_RULE
def test_nodes_that_are_not_valid_are_never_kept_and_bias_nothing(
    verifier, selection, tree
):
    """Shorter drafts, for reasons that have nothing to do with their tokens.

    What such a node holds, be it the target's own token or no token at all, is nothing
    to anybody.
    """
    tree = Tree.named(tree)
    p, q = Conditionals.random(3, 3, 4), Conditionals.random(3, 2, 5, zeros=0.3)
    drafts = all_drafts(q, tree, selection)
    judge = jax.jit(lambda log_p, draft: verifier.outcome(log_p, draft, tree))
    rows = len(drafts.chance)
    flat = jnp.zeros((rows, tree.size, 3))
    positions = jnp.tile(jnp.arange(tree.depth + 1), (rows, 1))
    noise = draw_noise(batch_keys(1, rows), positions, tree.size, 3)
    for absent in range(1, tree.size):
        wanted = jnp.arange(tree.size) != absent
        draft = drafts.draft.keep(jnp.broadcast_to(wanted, flat.shape[:2]), past=True)
        assert_lossless(verifier, p, replace(drafts, draft=draft), draws=0)
        gone = tree.ancestors[:, absent]
        stop = np.asarray(judge(flat, draft).stop)
        assert (stop[:, gone] == 0).all()
        verdict = compiled(verifier, "verify", tree)(flat, draft, noise)
        assert not gone[np.asarray(verdict.path)].any()
        np.testing.assert_allclose(stop.sum(-1), 1, atol=1e-5)
        # Without a token in it the law stays, and so does the outcome, but for a sample
        # drawn from what that token left.
        empty = replace(draft, tokens=jnp.where(wanted, draft.tokens, -1))
        assert_lossless(verifier, p, replace(drafts, draft=empty), draws=0)
        if selection != "top_and_sample":
            np.testing.assert_array_equal(judge(flat, empty).stop, stop)


def test_given_children_may_repeat_a_token():
    """Any tokens on any siblings, many of them twins, all as likely: still exact."""
    tree, vocab = Tree.named("0,1,2,00"), 3
    rows = np.array(list(product(range(vocab), repeat=tree.size - 1)), np.int32)
    tokens = jnp.asarray(np.pad(rows, ((0, 0), (1, 0))))
    draft = Draft(tokens, jnp.ones_like(tokens, bool))
    assert (tokens[:, 1] == tokens[:, 2]).any()
    drafts = Drafts(draft, np.full(len(rows), 1 / len(rows)), tree, True)
    p = Conditionals.random(vocab, 3, 6, zeros=0.2)
    for verifier in (Rejection(), Coupled()):
        assert_lossless(verifier, p, drafts, draws=0)
    # The control: twins that pass for independent samples of a law they do not have.
    log_q = jnp.full((len(rows), len(tree.internal), vocab), -np.log(vocab))
    twins = rows.copy()
    twins[:, 1] = twins[:, 0]
    twins = jnp.asarray(np.pad(twins, ((0, 0), (1, 0))))
    lying = Draft(twins, draft.valid, log_q=log_q, selection="with_replacement")
    with pytest.raises(AssertionError, match="is biased"):
        assert_lossless(
            Rejection(),
            Conditionals.random(vocab, 3, 6),
            replace(drafts, draft=lying),
            draws=0,
        )


# Speed.


def test_both_sides_of_a_speedup_are_measured_alike(monkeypatch):
    """Same models, settings, batches, repeats; and the result says which they were."""
    calls, tree = [], Tree.chain(2)

    def measured(bundle, settings, tree, **how):
        calls.append((tree.size, bundle, settings, how["repeats"], how["warm_up"]))
        count = len(settings.classes)
        return GenerationResult(
            tokens=np.zeros((count, 256), int),
            calls=np.full(count, 256 // tree.size),
            accepted=np.zeros((count, tree.depth + 1), int),
            hits=np.zeros((count, max(tree.depth, 1), 1), int),
            proposed=np.zeros(count, int),
            rescored=0,
            timing=Timing.exact(3.0 / tree.size),
            compile_seconds=9.0,
        )

    monkeypatch.setattr(generation, "draw", measured)
    costs = {"verify_cost": 1.5, "draft_cost": 0.5}
    monkeypatch.setattr(generation, "round_costs", lambda *_: costs)
    bundle = load_bundle()
    trees = {"a": tree, "b": Tree.chain(3)}
    rows = generation.bench_generation(bundle, trees, [1, 4], [2.0], num=4, repeats=3)
    assert [size for size, *_ in calls] == [1, 3, 4, 1, 3, 4]
    for side in (calls[:3], calls[3:]):  # one batch size; its plain run comes first
        assert all(call[1:] == side[0][1:] for call in side)
    assert [call[2].batch for call in calls[::3]] == [1, 4]
    assert all(call[3:] == (3, True) for call in calls)  # compiled before it is timed
    assert [row["speedup"] for row in rows] == [3, 4] * 2  # without compilation
    assert [row["batch"] for row in rows] == [1, 1, 4, 4]
    for row in rows:
        assert row["temperature"] == 1.0 and row["dtype"] == "float32" and row["device"]
