"""Verify step of a speculative round."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.kv_cache import KVCache
from jaxspec.core.logit_bounds import process_logits_with_bounds
from jaxspec.core.logits import apply_cfg
from jaxspec.core.precision import full_precision
from jaxspec.core.result import LogProbs
from jaxspec.core.slices import write_at
from jaxspec.speculative.draft_step import Drafted
from jaxspec.speculative.engine_config import EngineConfig
from jaxspec.speculative.log_probs import token_log_probs
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.target_pass import target_pass
from jaxspec.speculative.tie_break import is_near_tie, margin_with_filters, resolve_ties
from jaxspec.speculative.trees.topology import gather_nodes
from jaxspec.typing import Array, Bool, Float, Int


@register_dataclass
@dataclass(frozen=True)
class Verified:
    """Result of `verify`, and input of `commit`.

    Attributes:
      tokens: int32 [B, A], accepted tokens, then the next token of the target;
        arbitrary from index `accepted + 1` on.
      accepted: int32 [B], number of accepted tokens.
      path: int32 [B, A], accepted nodes, root first.
      rescored: bool [B], sequences whose path ended at a near-tie.
      finite: bool [B], False if the target gave NaN, or only -inf, on the path.
      cache: cache of the target, with nodes and extra queries after the committed
        slots.
      logits: float32 [B, N, V], logits of the target after all nodes, with guidance.
      features: [R, N, E], features of all nodes.
      extra_logits: float32 [B, X, V], logits of the target after the extra queries,
        with guidance; None without.
      extra_features: [R, X, E], features of the extra queries; None without.
      log_probs: log-probabilities of `tokens`; None unless they are recorded.
    """

    tokens: Int[Array, "B A"]
    accepted: Int[Array, "B"]
    path: Int[Array, "B A"]
    rescored: Bool[Array, "B"]
    finite: Bool[Array, "B"]
    cache: KVCache
    logits: Float[Array, "B N V"]
    features: Float[Array, "R N E"]
    extra_logits: Float[Array, "B X V"] | None = None
    extra_features: Float[Array, "R X E"] | None = None
    log_probs: LogProbs | None = None


@full_precision
def verify(
    engine: EngineConfig, variables: Variables, state: SpecState, drafted: Drafted
) -> Verified:
    """Computes the target's logits of a draft, and decides which tokens are accepted.

    Args:
      engine: static settings.
      variables: arrays of the batch; `target` and `verifier` are read.
      state: state of the batch.
      drafted: draft of the round.
    """
    size, draft = engine.tree.size, drafted.draft
    logits, features, cache = target_pass(engine, variables.target, state, drafted)
    index = state.length[:, None] + drafted.topology.depths
    merged = apply_cfg(logits[:, :size], state.sampling, index)
    extra_logits = extra_features = None
    if draft.extra is not None:
        extra_features = features[:, size:]
        index = draft.extra.positions - state.start[:, None] + draft.extra.ahead
        extra_logits = apply_cfg(logits[:, size:], state.sampling, index)
    features = features[:, :size]
    scores, uncertain = process_logits_with_bounds(
        merged, state.sampling, engine.order, engine.tie_margin
    )
    verdict = engine.verifier.verify(
        scores, draft, engine.tree, drafted.noise, variables.verifier, features
    )
    tokens, accepted, near = _emitted(
        engine, variables, state, drafted, verdict, scores, uncertain
    )
    on_path = jnp.arange(engine.path_length)[None] <= accepted[:, None]
    return Verified(
        tokens=tokens,
        accepted=accepted,
        path=verdict.path,
        rescored=near,
        finite=~jnp.any(jnp.isnan(verdict.margin) & on_path, axis=1),
        cache=cache,
        logits=merged,
        features=features,
        extra_logits=extra_logits,
        extra_features=extra_features,
        log_probs=token_log_probs(
            engine,
            variables,
            gather_nodes(merged, verdict.path),
            gather_nodes(scores, verdict.path),
            tokens,
        )
        if engine.log_probs
        else None,
    )


def _emitted(engine, variables, state, drafted, verdict, scores, uncertain):
    """Tokens of a round, number of accepted ones, and mask of paths with a near-tie."""
    draft, index = drafted.draft, jnp.arange(engine.path_length)[None]
    accepted = verdict.accepted.astype(jnp.int32)
    next_token = verdict.next_token.astype(jnp.int32)
    near = jnp.zeros_like(state.done)
    on_path = jnp.take_along_axis(draft.tokens, verdict.path[:, 1:], axis=1)
    on_path = jnp.pad(on_path, ((0, 0), (0, 1)))
    if engine.verifier.token_exact:  # a path ends at the first near-tie
        near, accepted = _first_near_tie(
            engine, state, drafted, verdict, scores, uncertain
        )
        noise = jnp.take_along_axis(
            drafted.noise.coupled, accepted[:, None, None], axis=1
        )
        next_token = resolve_ties(
            engine,
            variables.target,
            state.prompt,
            state.sampling,
            noise[:, 0],
            write_at(state.tokens, on_path, state.length),
            state.length + accepted,
            next_token,
            near,
        )
    tokens = jnp.where(index == accepted[:, None], next_token[:, None], on_path)
    return tokens, accepted, near


def _first_near_tie(engine, state, drafted, verdict, scores, uncertain):
    """Mask of paths with a near-tie, and number of accepted tokens before the first."""
    index = jnp.arange(engine.path_length)[None]
    remaining = state.stopping.max_new_tokens - state.new_length
    accepted = verdict.accepted.astype(jnp.int32)
    infinite = jnp.full(drafted.draft.tokens.shape, jnp.inf)
    noise = gather_nodes(drafted.noise.coupled, drafted.topology.depths)
    margin = margin_with_filters(infinite, scores, uncertain, noise)
    margin = jnp.take_along_axis(margin, verdict.path, axis=1)
    margin = jnp.minimum(verdict.margin, margin)
    near = is_near_tie(engine, state.sampling, margin)
    near &= index <= accepted[:, None]
    near &= index < remaining[:, None]  # later tokens are not emitted
    any_near = jnp.any(near, axis=1) & ~state.done
    first = jnp.argmax(near, axis=1).astype(jnp.int32)
    return any_near, jnp.where(any_near, first, accepted)
