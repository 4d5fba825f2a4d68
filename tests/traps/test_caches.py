"""Caches of a transformer and of its block drafter, in both branches of guidance."""

from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
class ForcedDrafts:
    """Block drafter with some tokens replaced by given ones.

    Parameters are those of the drafter, "truth" [B, T] and "depths" int32 [B]: drafted
    tokens up to that depth are the true ones, the next is wrong. -1 changes none.
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
        forced = jnp.where(depths <= wanted, truth, false).at[:, 0].set(ctx.root)
        tokens = jnp.where(wanted >= 0, forced, draft.tokens)
        return replace(draft, tokens=tokens), state

    def observe(self, params, state, result):
        return self.inner.observe(params["inner"], state, result)


@lru_cache
def compiled_engine():
    """Compiled engine: `start(stop)` and `step(forced, state)`."""
    inner, own, params = block_drafter()
    target = Transformer(TARGET).as_target(
        cfg=True, feature_layers=inner.config.feature_layers
    )
    tree = Tree.chain(DEPTH)
    order = ("temperature",)
    engine = Engine(
        target, LENGTH, ForcedDrafts(inner), tree, order=order, tie_margin=0.0
    )
    bound, sampling = (
        inner.with_target_params(own, params),
        Sampling.create(ROWS, cfg_scale=2.0),
    )
    unforced = {"truth": jnp.zeros((ROWS, LENGTH), int), "depths": -jnp.ones(ROWS, int)}

    keys = batch_keys(0, ROWS)

    def variables(forced):
        return Variables(params, {"inner": bound, **forced})

    start, step = jax.jit(engine.init), jax.jit(engine.step)
    return SimpleNamespace(
        engine=engine,
        inner=inner,
        bound=bound,
        params=params,
        unforced=unforced,
        start=lambda stop: start(
            variables(unforced),
            CLASSES,
            sampling=sampling,
            keys=keys,
            stopping=StoppingCriteria.create(
                ROWS, max_new_tokens=LENGTH, stop_tokens=stop
            ),
        ),
        step=lambda forced, state: step(variables(forced), state),
    )


def to_the_end(forced, between=lambda state: state, stop=((-1,),) * ROWS):
    w = compiled_engine()
    state = w.start(stop)
    while not bool(state.done.all()):
        state = w.step(forced, between(state))
    return state


@lru_cache
def unforced_run():
    """Last state of a run with unchanged drafts."""
    return to_the_end(compiled_engine().unforced)


def overwrite_unused(state):
    """Overwrites all slots that must not be read any more, in every cache."""
    branches = compiled_engine().engine.target.branches
    path, counts = (jnp.concatenate([x] * branches) for x in (state.path, state.counts))

    def overwrite(cache, kept):
        layers = jax.tree.map(
            lambda x: jnp.where(kept[:, None, :, None], x, 1e4), cache.layers
        )
        return replace(cache, layers=layers)

    slots = jnp.arange(state.cache.capacity)
    lengths = state.cache.lengths[:, None]
    accepted = jnp.arange(path.shape[1]) < counts[:, None]
    on_path = (slots[:, None] == lengths[..., None] + path[:, None]) & accepted[:, None]
    cache = overwrite(state.cache, (slots < lengths) | on_path.any(-1))
    own = state.drafter
    real = jnp.arange(own.pending.shape[1]) < own.counts[:, None]
    drafter = replace(
        own,
        cache=overwrite(
            own.cache, jnp.arange(own.cache.capacity) < own.cache.lengths[:, None]
        ),
        pending=jnp.where(real[..., None], own.pending, 1e4),
    )
    return replace(state, cache=cache, drafter=drafter)


@pytest.mark.slow
def test_slots_of_rejected_nodes_are_never_read():
    """Large values in every slot that is not committed change no token and no draft."""
    clean, overwritten = (
        unforced_run(),
        to_the_end(compiled_engine().unforced, overwrite_unused),
    )
    np.testing.assert_array_equal(
        overwritten.tokens[:, :LENGTH], clean.tokens[:, :LENGTH]
    )
    # The drafts are equal too: the same numbers of tokens were accepted.
    np.testing.assert_array_equal(overwritten.stats.accepted, clean.stats.accepted)
    assert 0 < int(clean.stats.hits.sum()) < int(clean.stats.proposed.sum())

    def overwrite_more(state):  # the control: one committed slot, too
        state = overwrite_unused(state)
        layers = jax.tree.map(lambda x: x.at[:, :, 1].set(1e4), state.cache.layers)
        return replace(state, cache=replace(state.cache, layers=layers))

    broken = to_the_end(compiled_engine().unforced, overwrite_more)
    assert (broken.tokens[:, :LENGTH] != clean.tokens[:, :LENGTH]).any()


def drafter_cache(state):
    """Cache of the drafter after it committed the last path, as in its next round."""
    w, own = compiled_engine(), state.drafter
    return w.inner._commit(w.bound, own.cache, own.pending, own.counts)


def fresh_contexts(tokens):
    """Keys and values of the target's features of whole sequences, for each layer."""
    w = compiled_engine()
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


@pytest.mark.slow
def test_the_drafter_cache_has_every_position_also_after_full_acceptance():
    """Its cache is computed from features of the target, not from its own drafts.

    One sequence has its whole path accepted in each round, so that the drafter needs
    the features of all its nodes; one is cut in the middle; one has everything
    rejected, and no entry of its trees may remain.
    """
    truth = unforced_run().tokens[:, :LENGTH]
    forced = {"truth": truth, "depths": jnp.array([DEPTH, 1, 0])}
    state = to_the_end(forced)
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
    assert min(off_by_one) > 1e-2  # the tolerance detects a shift by one position


def defined_parts(state):
    """Parts of a state that are defined."""

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


@pytest.mark.slow
def test_a_finished_sequence_does_not_change():
    """After its budget, and after a stop token long before."""
    w, tokens = compiled_engine(), unforced_run().tokens
    state = to_the_end(w.unforced, stop=[[-1], [int(tokens[1, 5])], [-1]])
    assert state.length[0] == LENGTH and state.length[1] <= 6
    state = w.step(w.unforced, state)  # commits what the last round accepted
    assert (state.cache.lengths == jnp.tile(state.length, 2)).all()
    after = w.step(w.unforced, w.step(w.unforced, state))
    jax.tree.map(
        np.testing.assert_array_equal, defined_parts(after), defined_parts(state)
    )
