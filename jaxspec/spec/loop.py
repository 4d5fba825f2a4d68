"""The speculative loop: one round as a pure function, and all rounds as one program."""

from dataclasses import replace
from functools import partial, wraps

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.spec.arguments import check_keys, check_rows
from jaxspec.spec.cache import commit_path, extend_cache, tree_mask
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult, extra_rows
from jaxspec.spec.noise import draw_noise, position_noise, private_keys
from jaxspec.spec.sampling import Sampling, apply_cfg, process_logits_with_bounds
from jaxspec.spec.settle import is_near_tie, margin_with_filters, resolve_ties
from jaxspec.spec.state import (
    Engine,
    Generation,
    SpecState,
    Stats,
    StoppingCriteria,
)
from jaxspec.spec.together import any_group, varying
from jaxspec.spec.topology import Topology, gather_nodes
from jaxspec.spec.vocabulary import argmax_with_margin
from jaxspec.typing import Array, BatchKeys, Bool, Int, Params, PyTree


def _streams(engine: Engine, x: Array) -> Array:
    """Repeats rows for each guidance stream."""
    return jnp.concatenate([x] * engine.target.streams) if x.ndim else x


def _full_precision(function):
    """Float32 means float32, also where a device would take shorter products."""

    @wraps(function)
    def run(*arguments, **options):
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **options)

    return run


def _stops(
    stopping: StoppingCriteria, tokens: Int[Array, "B ..."]
) -> Bool[Array, "B ..."]:
    """Which tokens end their row."""
    stop = jnp.expand_dims(stopping.stop_tokens, tuple(range(1, tokens.ndim)))
    return jnp.any((tokens[..., None] == stop) & (stop >= 0), axis=-1)


@_full_precision
def init_state(
    engine: Engine,
    params: Params,
    drafter_params: Params,
    prompt: PyTree,
    sampling: Sampling,
    keys: BatchKeys,
    stopping: StoppingCriteria | None = None,
    room: int | None = None,
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
      stopping: when rows end; by default at `engine.max_new_tokens`, and no earlier.
      room: tokens that the target's cache holds; by default `engine.max_new_tokens`. No
        row may take a round with more.

    Raises:
      ConfigError: keys are raw or not one a row, or arguments have different numbers
        of rows.
    """
    check_keys(keys)
    rows = keys.shape[0]
    check_rows(rows, prompt=prompt, sampling=sampling, stopping=stopping)
    length = engine.path_length
    stopping = (
        StoppingCriteria.create(rows, engine.max_new_tokens)
        if stopping is None
        else stopping
    )
    budget = jnp.minimum(stopping.max_new_tokens, engine.max_new_tokens)
    # Copies: the state may be donated, what the caller holds may not.
    stopping = replace(
        stopping, max_new_tokens=budget, stop_tokens=jnp.copy(stopping.stop_tokens)
    )
    extra = engine.max_new_tokens + engine.window  # slots beyond the prompt's
    least = extra if room is None else room + engine.window
    logits, features, cache = engine.target.prefill(params, prompt, least)
    start = jnp.copy(cache.lengths[:rows])  # not the cache's own buffer: see donation
    index = jnp.zeros(rows, jnp.int32)
    noise = position_noise(keys, start[:, None], engine.target.vocab_size)[:, 0]
    noise = jnp.where(sampling.temperature[:, None] > 0, noise, 0.0)
    guided = apply_cfg(logits, sampling, index)
    scores, doubtful = process_logits_with_bounds(
        guided, sampling, engine.order, engine.tie_margin
    )
    first, margin = argmax_with_margin(scores + noise)
    margin = margin_with_filters(margin, scores, doubtful, noise)
    tokens = jnp.zeros((rows, engine.max_new_tokens + length), jnp.int32)
    near = is_near_tie(engine, sampling, margin)
    first = resolve_ties(
        engine, params, prompt, sampling, noise, tokens, index, first, near
    )
    drafter = None
    if engine.drafter is not None:
        start_of = InitContext(
            prompt, features, cache.lengths, engine.tree, rows, extra
        )
        drafter = engine.drafter.init(drafter_params, start_of)
    identity = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
    depth, width = max(engine.tree.depth, 1), engine.tree.width
    state = SpecState(
        tokens=tokens.at[:, 0].set(first),
        length=jnp.ones(rows, jnp.int32),
        start=start,
        cache=cache,
        path=identity,
        counts=jnp.zeros(rows, jnp.int32),
        drafter=drafter,
        keys=jax.random.clone(keys),
        stopping=stopping,
        done=(budget <= 1) | _stops(stopping, first),
        stats=Stats(
            calls=jnp.ones(rows, jnp.int32),
            rounds=jnp.zeros((), jnp.int32),
            proposed=jnp.zeros(rows, jnp.int32),
            rescored=near.astype(jnp.int32),
            accepted=jnp.zeros((rows, length), jnp.int32),
            hits=jnp.zeros((rows, depth, width), jnp.int32),
        ),
        finite=~jnp.isnan(margin),
    )
    return varying(state, first, budget)


@_full_precision
def spec_step(
    engine: Engine,
    params: Params,
    drafter_params: Params,
    prompt: PyTree,
    sampling: Sampling,
    state: SpecState,
    verifier_params: Params = None,
) -> SpecState:
    """One round: commit the last path, draft, verify, emit. Donate `state`.

    Rows advance at their own pace; finished rows change nothing but garbage.
    `verifier_params` are the arrays that the verifier needs, if any.
    """
    tree, target = engine.tree, engine.target
    check_rows(state.done.shape[0], prompt=prompt, sampling=sampling)
    live = ~state.done
    newest = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, 1)[:, 0]
    position = state.start + state.length - 1
    after = position[:, None] + 1 + jnp.arange(engine.path_length)[None]
    greedy = sampling.temperature == 0
    noise = draw_noise(state.keys, after, tree.size, target.vocab_size, greedy)

    ctx = DraftContext(
        root=newest,
        tokens=state.tokens,
        position=position,
        index=state.length,
        noise=noise.coupled,
        keys=private_keys(state.keys, position),
        sampling=sampling,
        tree=tree,
        selection=engine.candidates,
        order=engine.order,
    )
    drafter_state = state.drafter
    if engine.drafter is None:
        rows = newest.shape[0]
        nothing = jnp.zeros((rows, 0, target.vocab_size), jnp.float32)
        root = jnp.ones((rows, 1), bool)
        draft = Draft(newest[:, None], root, nothing, selection=engine.candidates)
    else:
        draft, drafter_state = engine.drafter.propose(
            drafter_params, drafter_state, ctx
        )
    draft, shape = draft.checked(tree, target.vocab_size)
    draft = replace(draft, tokens=draft.tokens.at[:, 0].set(newest))

    logits, features, cache = _read(engine, params, state, draft, shape)
    index = state.length[:, None] + shape.depths
    merged = apply_cfg(logits[:, : tree.size], sampling, index)
    extra = extra_logits = None
    if draft.extra is not None:
        extra = features[:, tree.size :]
        index = draft.extra.positions - state.start[:, None] + draft.extra.ahead
        extra_logits = apply_cfg(logits[:, tree.size :], sampling, index)
    features = features[:, : tree.size]
    scores, doubtful = process_logits_with_bounds(
        merged, sampling, engine.order, engine.tie_margin
    )
    verdict = engine.verifier.verify(
        scores, draft, tree, noise, verifier_params, features
    )

    place = jnp.arange(engine.path_length)[None]
    left = state.stopping.max_new_tokens - state.length
    accepted = verdict.accepted.astype(jnp.int32)
    tied = jnp.zeros_like(live)
    if (
        engine.verifier.token_exact
    ):  # a path ends at its first near-tie, decided again below
        sure = jnp.full(draft.tokens.shape, jnp.inf)
        own = gather_nodes(noise.coupled, shape.depths)
        doubted = margin_with_filters(sure, scores, doubtful, own)
        doubted = jnp.take_along_axis(doubted, verdict.path, axis=1)
        near = is_near_tie(engine, sampling, jnp.minimum(verdict.margin, doubted))
        near &= place <= accepted[:, None]
        near &= place < left[:, None]  # what will be emitted
        tied = jnp.any(near, axis=1) & live
        first = jnp.argmax(near, axis=1).astype(jnp.int32)
        accepted = jnp.where(tied, first, accepted)
    on_path = jnp.take_along_axis(draft.tokens, verdict.path[:, 1:], axis=1)
    on_path = jnp.pad(on_path, ((0, 0), (0, 1)))
    write_row = jax.vmap(
        lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,))
    )
    next_token = verdict.next_token.astype(jnp.int32)
    if engine.verifier.token_exact:
        own_noise = jnp.take_along_axis(noise.coupled, accepted[:, None, None], axis=1)
        next_token = resolve_ties(
            engine,
            params,
            prompt,
            sampling,
            own_noise[:, 0],
            write_row(state.tokens, on_path, state.length),
            state.length + accepted,
            next_token,
            tied,
        )
    emitted = jnp.where(place == accepted[:, None], next_token[:, None], on_path)
    tokens = write_row(state.tokens, emitted, state.length)

    stops = _stops(state.stopping, emitted) & (place <= accepted[:, None])
    ends = jnp.argmax(stops, axis=1).astype(jnp.int32) + 1
    until = jnp.where(jnp.any(stops, axis=1), ends, left)
    count = jnp.minimum(jnp.minimum(accepted + 1, left), until)
    count = jnp.where(live, count, 0)
    stopped = jnp.any(stops & (place < count[:, None]), axis=1)
    if engine.drafter is not None:
        seen = RoundResult(
            tokens=emitted,
            counts=count,
            path=verdict.path,
            accepted=accepted,
            features=features,
            logits=merged,
            draft=draft,
            tree=tree,
            extra=extra,
            extra_logits=extra_logits,
        )
        drafter_state = engine.drafter.observe(drafter_params, drafter_state, seen)
    length = state.length + count
    broken = jnp.isnan(verdict.margin) & (place <= accepted[:, None]) & live[:, None]
    state = replace(
        state,
        tokens=tokens,
        length=length,
        cache=cache,
        path=verdict.path,
        counts=count,
        drafter=drafter_state,
        done=state.done | stopped | (length >= state.stopping.max_new_tokens),
        stats=_count(state.stats, draft, shape, verdict.path, accepted, tied, live),
        finite=state.finite & ~jnp.any(broken, axis=1),
    )
    return varying(state, emitted, count)


def _read(engine: Engine, params: Params, state: SpecState, draft: Draft, shape):
    """The target's pass over the tree and what rides along, behind the last path."""
    size = engine.tree.size
    path, counts = _streams(engine, state.path), _streams(engine, state.counts)
    cache = commit_path(state.cache, size, path, counts, engine.target.move)
    tokens = draft.tokens
    position = state.start + state.length - 1
    positions = position[:, None] + shape.depths
    window = shape.ancestors
    static = draft.parents is None
    window = window[0] if static else window  # [N, N] or [B, N, N]
    riders, wanted = draft.extra, extra_rows(engine.drafter, engine.tree)
    if (riders.tokens.shape[1] if riders else 0) != wanted:
        raise ConfigError(
            f"the drafter sent {riders.tokens.shape[1] if riders else 0} extra rows, "
            f"its attribute extra_rows says {wanted}"
        )
    if riders is not None:
        rows, ids = tokens.shape[0], engine.target.vocab_size
        ids += engine.target.extra_tokens
        # An unknown token or position may become NaN, which no mask keeps from others.
        known = (riders.tokens >= 0) & (riders.tokens < ids)
        own = jnp.where(known, riders.tokens, 0).astype(jnp.int32)
        tokens = jnp.concatenate([tokens, own], axis=1)
        last = state.start[:, None] + engine.max_new_tokens + engine.window
        own = jnp.clip(riders.positions, 0, last).astype(jnp.int32)
        positions = jnp.concatenate([positions, own], axis=1)
        nodes = jnp.broadcast_to(shape.ancestors, (rows, size, size))
        nodes = jnp.pad(nodes, ((0, 0), (0, 0), (0, wanted)))  # nobody sees a rider
        own = jnp.eye(wanted, size + wanted, size, dtype=bool)
        window = jnp.concatenate([nodes, riders.mask | own[None]], axis=1)
    if window.ndim == 3:
        window = _streams(engine, window)
    # Prompts of the streams may be of different lengths.
    shift = cache.lengths - _streams(engine, cache.lengths[: tokens.shape[0]])
    return engine.target.forward(
        params,
        cache,
        _streams(engine, tokens),
        _streams(engine, positions) + shift[:, None],
        tree_mask(cache, window),
    )


def _count(stats, draft, shape: Topology, path, accepted, tied, live) -> Stats:
    one = live.astype(jnp.int32)
    row = jnp.arange(one.shape[0])
    hits = stats.hits
    depth = path.shape[1] - 1
    if depth:
        ranks = gather_nodes(shape.ranks, path[:, 1:])  # [B, D]
        kept = jnp.arange(depth)[None] < accepted[:, None]
        place = jnp.broadcast_to(jnp.arange(depth), ranks.shape)
        kept = (kept & live[:, None]).astype(jnp.int32)
        hits = hits.at[row[:, None], place, ranks].add(kept)
    proposed = jnp.sum(draft.valid[:, 1:], axis=1, dtype=jnp.int32)
    return Stats(
        calls=stats.calls + one,
        rounds=stats.rounds + 1,
        proposed=stats.proposed + proposed * one,
        rescored=stats.rescored + tied.astype(jnp.int32),
        accepted=stats.accepted.at[row, accepted].add(one),
        hits=hits,
    )


def generate(
    engine: Engine,
    params: Params,
    drafter_params: Params,
    prompt: PyTree,
    sampling: Sampling,
    keys: BatchKeys,
    stopping: StoppingCriteria | None = None,
    verifier_params: Params = None,
) -> Generation:
    """Generates every row to its end in one `lax.while_loop`; call it under `jit`.

    With `Coupled` (the default) the tokens are those of the same call without a
    drafter. Other lossless verifiers keep the distribution. Arguments as in
    `init_state` and `spec_step`.
    """

    def running(state: SpecState, end: int) -> Array:
        going = any_group(jnp.any(~state.done))
        if end == engine.max_new_tokens:
            return going
        # Also rows that are done write their junk; no group may lack room for it.
        return going & ~any_group(jnp.any(state.length > end))

    def step(state: SpecState) -> SpecState:
        return spec_step(
            engine, params, drafter_params, prompt, sampling, state, verifier_params
        )

    count = engine.cache_stages
    ends = [engine.max_new_tokens * (i + 1) // count for i in range(count)]
    given = params, drafter_params, prompt, sampling, keys, stopping
    state, room = init_state(engine, *given, room=ends[0]), ends[0]
    for end in ends:
        state = replace(state, cache=extend_cache(state.cache, end - room))
        state = jax.lax.while_loop(partial(running, end=end), step, state)
        room = end
    return result_of(engine, state)


def result_of(engine: Engine, state: SpecState) -> Generation:
    """What the rows of a state have made so far."""
    tokens = state.tokens[:, : engine.max_new_tokens]
    beyond = jnp.arange(engine.max_new_tokens)[None] >= state.length[:, None]
    tokens = jnp.where(beyond, -1, tokens)
    return Generation(tokens, state.length, state.stats, state.finite)
