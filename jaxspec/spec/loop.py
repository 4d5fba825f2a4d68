"""The speculative loop: one round as a pure function, and all rounds as one program."""

from dataclasses import replace
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.spec.cache import compact, tree_mask
from jaxspec.spec.draft import Draft, Round
from jaxspec.spec.noise import position_noise
from jaxspec.spec.sampling import Sampling, guide, process_with_doubt
from jaxspec.spec.settle import doubted_margin, near_tie, settle
from jaxspec.spec.state import Engine, Generation, SpecState, Stats
from jaxspec.spec.verify.coupled import choose
from jaxspec.typing import Array, Params, PyTree, RowKeys


def _streams(engine: Engine, x: Array) -> Array:
    """Repeats rows for each guidance stream."""
    return jnp.concatenate([x] * engine.target.streams) if x.ndim else x


def _noise(engine, keys, positions, sampling):
    """Noise of sampled rows; greedy rows get none."""
    noise = position_noise(keys, positions, engine.target.vocab_size)
    return jnp.where(sampling.temperature[:, None, None] > 0, noise, 0.0)


def _full_precision(function):
    """Float32 means float32, also where a device would take shorter products."""

    @wraps(function)
    def run(*arguments, **options):
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **options)

    return run


@_full_precision
def init_state(
    engine: Engine,
    params: Params,
    drafter_params: Params,
    prompt: PyTree,
    sampling: Sampling,
    keys: RowKeys,
) -> SpecState:
    """Reads the prompt and draws the first token, which never is a draft's.

    Args:
      engine: static pieces.
      params: the target's parameters.
      drafter_params: the drafter's; None without one.
      prompt: what the target's `prefill` takes, `B` rows.
      sampling: settings of the rows.
      keys: one typed key a row; the same key, prompt and settings give the same
        tokens in any batch, with any drafter and tree.
    """
    rows = keys.shape[0]
    length = engine.path_length
    extra = engine.max_tokens + engine.tree.size  # slots beyond the prompt's
    logits, features, cache = engine.target.prefill(params, prompt, extra)
    start = jnp.copy(cache.lengths[:rows])  # not the cache's own buffer: see donation
    index = jnp.zeros(rows, jnp.int32)
    noise = _noise(engine, keys, start[:, None], sampling)[:, 0]
    guided = guide(logits, sampling, index)
    scores, doubtful = process_with_doubt(
        guided, sampling, engine.order, engine.tie_margin
    )
    first, margin = choose(scores + noise)
    margin = doubted_margin(margin, scores, doubtful, noise)
    tokens = jnp.zeros((rows, engine.max_tokens + length), jnp.int32)
    near = near_tie(engine, sampling, margin)
    first = settle(engine, params, prompt, sampling, noise, tokens, index, first, near)
    drafter = None
    if engine.drafter is not None:
        drafter = engine.drafter.init(drafter_params, features, extra, engine.tree)
    identity = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
    depth, width = max(engine.tree.depth, 1), engine.tree.width
    return SpecState(
        tokens=tokens.at[:, 0].set(first),
        length=jnp.ones(rows, jnp.int32),
        start=start,
        cache=cache,
        path=identity,
        counts=jnp.zeros(rows, jnp.int32),
        drafter=drafter,
        keys=jax.random.clone(keys),  # the state may be donated, the caller's keys not
        stats=Stats(
            calls=jnp.ones(rows, jnp.int32),
            rounds=jnp.zeros((), jnp.int32),
            rescored=near.astype(jnp.int32),
            accepted=jnp.zeros((rows, length), jnp.int32),
            hits=jnp.zeros((rows, depth, width), jnp.int32),
        ),
        finite=~jnp.any(jnp.isnan(margin)),
    )


@_full_precision
def spec_step(
    engine: Engine,
    params: Params,
    drafter_params: Params,
    prompt: PyTree,
    sampling: Sampling,
    state: SpecState,
) -> SpecState:
    """One round: commit the last path, draft, verify, emit. Donate `state`.

    Rows advance at their own pace; finished rows change nothing but garbage.
    """
    tree, target = engine.tree, engine.target
    live = state.length < engine.max_tokens
    cache = compact(
        state.cache,
        tree.size,
        _streams(engine, state.path),
        _streams(engine, state.counts),
    )

    newest = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, 1)[:, 0]
    position = state.start + state.length - 1
    after = position[:, None] + 1 + jnp.arange(engine.path_length)
    noise = _noise(engine, state.keys, after, sampling)

    this = Round(newest, position, state.length, noise, sampling)
    drafter_state = state.drafter
    if engine.drafter is None:
        draft = Draft(newest[:, None], jnp.ones((newest.shape[0], 1), bool))
    else:
        draft, drafter_state = engine.drafter.propose(
            drafter_params, drafter_state, this, tree, engine.order
        )

    depths = jnp.asarray(tree.depths)
    logits, features, cache = target.forward(
        params,
        cache,
        _streams(engine, draft.tokens),
        _streams(engine, position[:, None] + depths),
        tree_mask(cache, jnp.asarray(tree.ancestors)),
    )
    merged = guide(logits, sampling, state.length[:, None] + depths)
    scores, doubtful = process_with_doubt(
        merged, sampling, engine.order, engine.tie_margin
    )
    verdict = engine.rule.verify(scores, draft, tree, noise)
    sure = jnp.full(draft.tokens.shape, jnp.inf)
    doubted = doubted_margin(sure, scores, doubtful, noise[:, depths])
    doubted = jnp.take_along_axis(doubted, verdict.path, axis=1)
    margin = jnp.minimum(verdict.margin, doubted)

    # A path ends at its first near-tie, which is decided again.
    place = jnp.arange(engine.path_length)
    near = near_tie(engine, sampling, margin) & (place <= verdict.accepted[:, None])
    near &= state.length[:, None] + place < engine.max_tokens  # what will be emitted
    tied = jnp.any(near, axis=1) & live
    accepted = jnp.where(tied, jnp.argmax(near, axis=1), verdict.accepted)
    on_path = jnp.take_along_axis(draft.tokens, verdict.path[:, 1:], axis=1)
    on_path = jnp.pad(on_path, ((0, 0), (0, 1)))
    write_row = jax.vmap(
        lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,))
    )
    tokens = write_row(state.tokens, on_path, state.length)
    own_noise = jnp.take_along_axis(noise, accepted[:, None, None], axis=1)[:, 0]
    next_token = settle(
        engine,
        params,
        prompt,
        sampling,
        own_noise,
        tokens,
        state.length + accepted,
        verdict.next_token,
        tied,
    )
    emitted = jnp.where(place == accepted[:, None], next_token[:, None], on_path)
    tokens = write_row(state.tokens, emitted, state.length)

    count = jnp.minimum(accepted + 1, engine.max_tokens - state.length)
    if engine.drafter is not None:
        path = _streams(engine, verdict.path)
        seen = jnp.take_along_axis(features, path[..., None], axis=1)
        drafter_state = engine.drafter.observe(
            drafter_params, drafter_state, seen, _streams(engine, count)
        )
    return replace(
        state,
        tokens=tokens,
        length=state.length + count,
        cache=cache,
        path=verdict.path,
        counts=count,
        drafter=drafter_state,
        stats=_count(engine, state.stats, verdict.path, accepted, tied, live),
        finite=state.finite
        & ~jnp.any(jnp.isnan(verdict.margin) & (place <= accepted[:, None])),
    )


def _count(engine, stats, path, accepted, tied, live) -> Stats:
    one = live.astype(jnp.int32)
    row = jnp.arange(one.shape[0])
    hits = stats.hits
    if engine.tree.depth:
        ranks = jnp.asarray(engine.tree.ranks)[path[:, 1:]]  # [B, D]
        kept = jnp.arange(engine.tree.depth) < accepted[:, None]
        depth = jnp.broadcast_to(jnp.arange(engine.tree.depth), ranks.shape)
        hits = hits.at[row[:, None], depth, ranks].add(kept * one[:, None])
    return Stats(
        calls=stats.calls + one,
        rounds=stats.rounds + 1,
        rescored=stats.rescored + tied,
        accepted=stats.accepted.at[row, accepted].add(one),
        hits=hits,
    )


def generate(
    engine: Engine,
    params: Params,
    drafter_params: Params,
    prompt: PyTree,
    sampling: Sampling,
    keys: RowKeys,
) -> Generation:
    """Generates every row to its end in one `lax.while_loop`; call it under `jit`.

    With a lossless rule the tokens are those of the same call without a drafter.
    Arguments as in `init_state`.
    """

    def running(state: SpecState) -> Any:
        return jnp.any(state.length < engine.max_tokens)

    def step(state: SpecState) -> SpecState:
        return spec_step(engine, params, drafter_params, prompt, sampling, state)

    state = init_state(engine, params, drafter_params, prompt, sampling, keys)
    state = jax.lax.while_loop(running, step, state)
    return Generation(state.tokens[:, : engine.max_tokens], state.stats, state.finite)
