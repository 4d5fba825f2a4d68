"""Forward pass of the target over a draft tree and extra queries."""

import jax.numpy as jnp

from jaxspec.core.branches import repeat_branches
from jaxspec.core.kv_cache import KVCache, commit_path, tree_mask
from jaxspec.speculative.draft_step import Drafted
from jaxspec.speculative.engine_config import EngineConfig
from jaxspec.speculative.state import SpecState
from jaxspec.typing import Array, Bool, Float, Int, Params


def target_pass(
    engine: EngineConfig, params: Params, state: SpecState, drafted: Drafted
) -> tuple[Float[Array, "R M V"], Float[Array, "R M E"], KVCache]:
    """Commits the last path to the cache, and computes the logits of the draft.

    Args:
      engine: static settings.
      params: parameters of the target.
      state: state of the batch.
      drafted: draft of the round.

    Returns:
      Logits and features of all nodes, then of the extra queries, `M = N + X`; and the
      cache, with their keys and values after the committed slots.
    """
    branches, batch = engine.target.branches, state.length.shape[0]
    cache = commit_path(
        state.cache,
        engine.tree.size,
        repeat_branches(state.path, branches),
        repeat_branches(state.counts, branches),
        engine.target.move,
    )
    tokens, positions, window = _queries(engine, state, drafted)
    if window.ndim == 3:
        window = repeat_branches(window, branches)
    # The prompts of the branches may have different lengths.
    shift = cache.lengths - repeat_branches(cache.lengths[:batch], branches)
    return engine.target.forward(
        params,
        cache,
        repeat_branches(tokens, branches),
        repeat_branches(positions, branches) + shift[:, None],
        tree_mask(cache, window),
    )


def _queries(
    engine: EngineConfig, state: SpecState, drafted: Drafted
) -> tuple[Int[Array, "B M"], Int[Array, "B M"], Bool[Array, "..."]]:
    """Tokens, positions and attention mask of nodes and extra queries.

    The mask is [M, M] if it is the same for all sequences, else [B, M, M], `M = N + X`.
    """
    draft, ancestors = drafted.draft, drafted.topology.ancestors
    root_position = state.start + state.length - 1
    tokens = draft.tokens
    positions = root_position[:, None] + drafted.topology.depths
    if draft.extra is None:
        return tokens, positions, ancestors[0] if draft.parents is None else ancestors
    batch, size, extra = tokens.shape[0], engine.tree.size, draft.extra
    count = extra.tokens.shape[1]
    ids = engine.target.vocab_size + engine.target.extra_tokens
    # Tokens or positions out of range may give NaN, which a mask does not hide.
    known = (extra.tokens >= 0) & (extra.tokens < ids)
    extra_tokens = jnp.where(known, extra.tokens, 0).astype(jnp.int32)
    total = state.prefix_length + engine.max_new_tokens
    last = state.start[:, None] + total + engine.window
    extra_positions = jnp.clip(extra.positions, 0, last).astype(jnp.int32)
    # Nodes do not attend to extra queries; each of these attends to itself.
    nodes = jnp.broadcast_to(ancestors, (batch, size, size))
    nodes = jnp.pad(nodes, ((0, 0), (0, 0), (0, count)))
    itself = jnp.eye(count, size + count, size, dtype=bool)
    return (
        jnp.concatenate([tokens, extra_tokens], axis=1),
        jnp.concatenate([positions, extra_positions], axis=1),
        jnp.concatenate([nodes, extra.mask | itself[None]], axis=1),
    )
