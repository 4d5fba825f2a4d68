"""Commit step of a speculative round."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxspec.core.mesh_sync import varying
from jaxspec.core.precision import full_precision
from jaxspec.core.result import Stats
from jaxspec.core.slices import write_at
from jaxspec.speculative.draft import RoundResult
from jaxspec.speculative.draft_step import Drafted
from jaxspec.speculative.engine_config import EngineConfig
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.trees.topology import gather_nodes
from jaxspec.speculative.verify_step import Verified
from jaxspec.typing import Array, Bool, Int


@full_precision
def commit(
    engine: EngineConfig,
    variables: Variables,
    state: SpecState,
    drafted: Drafted,
    verified: Verified,
) -> SpecState:
    """Appends the tokens of a round, and updates the drafter and the counters.

    Finished sequences do not advance. Accepted keys and values are committed to the
    cache by the pass of the next round.

    Args:
      engine: static settings.
      variables: arrays of the batch; only `drafter` is read.
      state: state of the batch.
      drafted: draft of the round.
      verified: result of its verification.
    """
    count, stopped = _count_emitted(engine, state, verified)
    drafter = drafted.drafter
    if engine.drafter is not None:
        result = RoundResult(
            tokens=verified.tokens,
            counts=count,
            path=verified.path,
            accepted=verified.accepted,
            features=verified.features,
            logits=verified.logits,
            draft=drafted.draft,
            tree=engine.tree,
            extra=verified.extra_features,
            extra_logits=verified.extra_logits,
        )
        drafter = engine.drafter.observe(variables.drafter, drafter, result)
    log_probs = state.log_probs and jax.tree.map(
        lambda x, new: write_at(x, new, state.length),
        state.log_probs,
        verified.log_probs,
    )
    state = replace(
        state,
        tokens=write_at(state.tokens, verified.tokens, state.length),
        length=state.length + count,
        cache=verified.cache,
        path=verified.path,
        counts=count,
        drafter=drafter,
        done=state.done
        | stopped
        | (state.new_length + count >= state.stopping.max_new_tokens),
        stats=_updated_stats(state, drafted, verified),
        finite=state.finite & (verified.finite | state.done),
        log_probs=log_probs,
    )
    return varying(state, verified.tokens, count)


def _count_emitted(
    engine: EngineConfig, state: SpecState, verified: Verified
) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
    """Number of emitted tokens of each sequence, and whether the last is a stop."""
    index = jnp.arange(engine.path_length)[None]
    accepted = verified.accepted
    remaining = state.stopping.max_new_tokens - state.new_length
    stops = state.stopping.is_stop(verified.tokens) & (index <= accepted[:, None])
    end = jnp.argmax(stops, axis=1).astype(jnp.int32) + 1
    end = jnp.where(jnp.any(stops, axis=1), end, remaining)
    count = jnp.minimum(jnp.minimum(accepted + 1, remaining), end)
    count = jnp.where(state.done, 0, count)
    return count, jnp.any(stops & (index < count[:, None]), axis=1)


def _updated_stats(state: SpecState, drafted: Drafted, verified: Verified) -> Stats:
    """Counters after a round; those of finished sequences stay."""
    stats, path, accepted = state.stats, verified.path, verified.accepted
    live = (~state.done).astype(jnp.int32)
    sequence = jnp.arange(live.shape[0])
    hits, depth = stats.hits, path.shape[1] - 1
    if depth:
        ranks = gather_nodes(drafted.topology.ranks, path[:, 1:])  # [B, A - 1]
        index = jnp.broadcast_to(jnp.arange(depth), ranks.shape)
        hit = (index < accepted[:, None]).astype(jnp.int32) * live[:, None]
        hits = hits.at[sequence[:, None], index, ranks].add(hit)
    proposed = jnp.sum(drafted.draft.valid[:, 1:], axis=1, dtype=jnp.int32)
    return Stats(
        calls=stats.calls + live,
        rounds=stats.rounds + 1,
        proposed=stats.proposed + proposed * live,
        rescored=stats.rescored + verified.rescored.astype(jnp.int32),
        accepted=stats.accepted.at[sequence, accepted].add(live),
        hits=hits,
    )
