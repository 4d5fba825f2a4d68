"""Autoregressive draft models with their own KV cache."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.config import TransformerConfig
from jaxspec.core.branches import repeat_branches
from jaxspec.core.kv_cache import KVCache, causal_mask
from jaxspec.core.logits import apply_cfg
from jaxspec.drafters.common.scratch import ScratchCache, insert_root
from jaxspec.drafters.tree_drafting import expansions, grow
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.prefix import prefill as read_prompts
from jaxspec.speculative.target import Target
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class ModelState:
    """State of a draft model between rounds.

    Attributes:
      cache: keys and values of the committed tokens read so far.
      tokens: int32 [B, A], committed tokens not read yet, the root last.
      counts: int32 [B], number of valid entries in `tokens`.
    """

    cache: KVCache
    tokens: Int[Array, "B A"]
    counts: Int[Array, "B"]


@dataclass(frozen=True)
class DraftModel:
    """Drafts with a smaller model of the same vocabulary, one pass per tree level.

    The tokens committed by the last round are read together with the new root in one
    pass of fixed width, so the cache never misses a token, however many were accepted.
    Then each level of the tree takes one pass. Its nodes are written behind the
    committed cache slots, and each node attends to its own ancestors only. The same
    class serves:

    - an ordinary draft model (Leviathan et al., arXiv 2211.17192), or the first layers
      of one trained with several exits (S2D, arXiv 2407.01955);
    - the target's own first layers and head (LayerSkip, arXiv 2404.16710): see
      `early_exit`; or these with an adapter (arXiv 2404.18911): see `Kangaroo`.

    `DynamicExit` chooses among several exits.

    Parameters: those of `model`.

    Attributes:
      model: the draft model as a `Target`. With two guidance branches it uses the same
        CFG scale as the target; with one it drafts without guidance.
    """

    model: Target

    def init(self, params: Params, ctx: InitContext) -> ModelState:
        """See `Drafter`."""
        return prefill(self.model, params, ctx, expansions(ctx.tree)[0])

    def propose(
        self, params: Params, state: ModelState, ctx: DraftContext
    ) -> tuple[Draft, ModelState]:
        """See `Drafter`."""
        if self.model.vocab_size != ctx.noise.shape[-1]:
            raise ConfigError(
                f"the drafter has {self.model.vocab_size} tokens, the target "
                f"{ctx.noise.shape[-1]}; they must share a vocabulary"
            )
        branches = self.model.branches
        logits, _, cache, last = read_committed(self.model, params, state, ctx)
        lengths = cache.lengths + repeat_branches(state.counts, branches)
        cache = replace(cache, lengths=lengths)
        last = repeat_branches(last, branches)[:, None, None]
        root_logits = jnp.take_along_axis(logits, last, axis=1)
        draft, cache = grow_by_levels(self.model, params, cache, root_logits, ctx)
        return draft, replace(state, cache=cache, counts=jnp.zeros_like(state.counts))

    def observe(
        self, params: Params, state: ModelState, result: RoundResult
    ) -> ModelState:
        """See `Drafter`; the next `propose` reads the tokens."""
        return replace(state, tokens=result.tokens, counts=result.counts)


def prefill(
    model: Target, params: Params, ctx: InitContext, scratch: int
) -> ModelState:
    """Reads the prompts.

    Args:
      model: the draft model.
      params: parameters of the model.
      ctx: the prompts.
      scratch: cache slots for draft nodes, in addition to those of committed tokens.
    """
    path = ctx.tree.depth + 1
    extra = ctx.extra + path + scratch
    _, _, cache = read_prompts(model, params, ctx.prompt, extra)
    return ModelState(
        cache,
        jnp.zeros((ctx.batch, path), jnp.int32),
        jnp.ones(ctx.batch, jnp.int32),
    )


def read_committed(
    model: Target, params: Params, state: ModelState, ctx: DraftContext
) -> tuple[Float[Array, "R A V"], Float[Array, "R A E"], KVCache, Int[Array, "B"]]:
    """Reads the tokens committed by the last round, and the new root.

    Returns:
      Logits and features after each of these tokens; the cache with them written, its
      `lengths` unchanged; and the index of the root among them.
    """
    path = state.tokens.shape[1]
    last = jnp.maximum(state.counts - 1, 0)
    tokens = insert_root(state.tokens, ctx.root, last)
    positions = (ctx.position - last)[:, None] + jnp.arange(path)[None]
    logits, features, cache = model.forward(
        params,
        state.cache,
        repeat_branches(tokens, model.branches),
        repeat_branches(positions, model.branches),
        causal_mask(state.cache, path),
    )
    return logits, features, cache, last


def grow_by_levels(
    model: Target,
    params: Params,
    cache: KVCache,
    root_logits: Float[Array, "R 1 V"],
    ctx: DraftContext,
) -> tuple[Draft, KVCache]:
    """Drafts a tree with one pass per level, its nodes in slots behind the committed.

    Args:
      model: the draft model.
      params: parameters of the model.
      cache: keys and values of all committed tokens and the root.
      root_logits: [R, 1, V], logits after the root.
      ctx: the round.

    Returns:
      The draft, and the cache with the draft nodes written behind its `lengths`.
    """
    slots, branches = expansions(ctx.tree)[0], model.branches

    def step(depth, tokens, ancestors, scratch):
        offset = jnp.broadcast_to(jnp.reshape(depth, (-1, 1)), tokens.shape)
        if scratch.used is None:  # the root was read with the committed tokens
            logits, scratch = root_logits, replace(scratch, used=0)
        else:
            ancestors, mask, at_slots = scratch.reserve(ancestors)
            positions = repeat_branches(ctx.position[:, None] + offset, branches)
            logits, _, written = model.forward(
                params, at_slots, repeat_branches(tokens, branches), positions, mask
            )
            scratch = scratch.store(written.layers, tokens.shape[1])
        logits = apply_cfg(logits, ctx.sampling, ctx.index[:, None] + offset)
        return logits, ancestors, scratch

    no_ancestors = jnp.zeros((len(ctx.root), 1, slots), bool)
    draft, scratch = grow(ctx, step, no_ancestors, ScratchCache(cache, None, slots))
    return draft, scratch.cache


def early_exit(
    config: TransformerConfig, layers: int, *, cfg: bool = True
) -> DraftModel:
    """Makes a drafter of a transformer's first layers, final norm and head.

    The drafter's parameters are those of the target. How well it drafts depends on
    whether the target was trained for early exits (LayerSkip, arXiv 2404.16710).

    Raises:
      ConfigError: the target has too few layers.
    """
    if not 1 <= layers < config.layers:
        raise ConfigError(
            f"layers={layers}: an early exit keeps 1 to {config.layers - 1} of the "
            f"target's {config.layers} layers"
        )
    return DraftModel(Transformer(replace(config, layers=layers)).as_target(cfg=cfg))
