"""Caches of a transformer and of its block drafter, in both branches of guidance."""

from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from tests.drafters.tiny_block import TARGET, block_drafter

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
    inner, own, params = block_drafter()
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
