"""Any autoregressive model as a drafter of another, with a cache of its own."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.config import TransformerConfig
from jaxspec.drafters.grow import expansions, grow
from jaxspec.errors import ConfigError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.cache import KVCache, tree_mask
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.sampling import apply_cfg
from jaxspec.spec.target import Target
from jaxspec.typing import Array, Float, Int, Params, PyTree


@register_dataclass
@dataclass(frozen=True)
class ModelState:
    """What the drafter carries between rounds.

    Attributes:
      cache: holds all committed tokens that were read.
      tokens: int32 [B, A], committed tokens that were not, the root last.
      counts: int32 [B], how many of them are real.
    """

    cache: KVCache
    tokens: Int[Array, "B A"]
    counts: Int[Array, "B"]


@dataclass(frozen=True)
class DraftModel:
    """Drafts with a smaller model of the same vocabulary, level by level.

    What a round committed is read in one pass of fixed width together with the new root
    (so a cache never misses a token, however much was accepted); then each level of the
    tree takes one pass. Nodes are written behind the committed slots, where nobody else
    looks, and each sees its own ancestors. The same class serves:

    - an ordinary draft model (Leviathan et al., arXiv 2211.17192), or the first layers
      of one that was trained to be cut anywhere (S2D, arXiv 2407.01955);
    - the target's own first layers and head (LayerSkip, arXiv 2404.16710): see
      `early_exit`; or these with an adapter (arXiv 2404.18911): see `Kangaroo`.

    `DynamicExit` chooses among several cuts.

    Parameters: those of `model`.

    Attributes:
      model: the drafter as a `Target`. With two guidance streams it follows the same
        scale as the target; with one it drafts without guidance.
    """

    model: Target

    def init(self, params: Params, ctx: InitContext) -> ModelState:
        """See `spec.draft.Drafter`."""
        return begin(self.model, params, ctx, expansions(ctx.tree)[0])

    def propose(
        self, params: Params, state: ModelState, ctx: DraftContext
    ) -> tuple[Draft, ModelState]:
        """See `spec.draft.Drafter`."""
        if self.model.vocab_size != ctx.noise.shape[-1]:
            raise ConfigError(
                f"the drafter has {self.model.vocab_size} tokens, the target "
                f"{ctx.noise.shape[-1]}; they must share a vocabulary"
            )
        logits, _, cache, last = catch_up(self.model, params, state, ctx)
        lengths = cache.lengths + both(self.model, state.counts)
        last = both(self.model, last)[:, None, None]
        first = jnp.take_along_axis(logits, last, axis=1)
        draft, layers = grow_by_levels(self.model, params, cache, lengths, first, ctx)
        cache = replace(cache, layers=layers, lengths=lengths)
        return draft, replace(state, cache=cache, counts=jnp.zeros_like(state.counts))

    def observe(
        self, params: Params, state: ModelState, result: RoundResult
    ) -> ModelState:
        """See `spec.draft.Drafter`; the tokens are read by the next `propose`."""
        return replace(state, tokens=result.tokens, counts=result.counts)


def both(model: Target, x: Array) -> Array:
    """Repeats rows for each guidance stream of a drafter."""
    return jnp.concatenate([x] * model.streams)


def begin(model: Target, params: Params, ctx: InitContext, room: int) -> ModelState:
    """Reads the prompt; the cache has `room` slots more than the engine asks for."""
    path = ctx.tree.depth + 1
    _, _, cache = model.prefill(params, ctx.prompt, ctx.extra + path + room)
    return ModelState(
        cache,
        jnp.zeros((ctx.rows, path), jnp.int32),
        jnp.ones(ctx.rows, jnp.int32),
    )


def catch_up(
    model: Target, params: Params, state: ModelState, ctx: DraftContext
) -> tuple[Float[Array, "R A V"], Float[Array, "R A E"], KVCache, Int[Array, "B"]]:
    """Reads what the last round committed, and the new root.

    Returns:
      Logits and features after each of these tokens, the cache that holds them (its
      lengths are what they were), and the place of the root among them.
    """
    path = state.tokens.shape[1]
    last = jnp.maximum(state.counts - 1, 0)
    here = jnp.arange(path)[None] == last[:, None]
    tokens = jnp.where(here, ctx.root[:, None], state.tokens)
    positions = (ctx.position - last)[:, None] + jnp.arange(path)[None]
    mask = tree_mask(state.cache, jnp.tril(jnp.ones((path, path), bool)))
    logits, features, cache = model.forward(
        params, state.cache, both(model, tokens), both(model, positions), mask
    )
    return logits, features, cache, last


def grow_by_levels(
    model: Target,
    params: Params,
    cache: KVCache,
    lengths: Int[Array, "R"],
    first: Float[Array, "R 1 V"],
    ctx: DraftContext,
) -> tuple[Draft, PyTree]:
    """A draft, a pass for each level, nodes on slots behind the committed ones.

    Args:
      model: the drafter.
      params: its parameters.
      cache: holds all committed tokens and the root.
      lengths: how many that are.
      first: logits after the root.
      ctx: the round.

    Returns:
      The draft, and the cache's layers with what was written behind `lengths`.
    """
    slots = expansions(ctx.tree)[0]

    def step(depth, tokens, own, shared):
        layers, used = shared
        ahead = jnp.broadcast_to(jnp.reshape(depth, (-1, 1)), tokens.shape)
        if used is None:  # the root was read before
            logits, shared = first, (layers, 0)
        else:
            behind = replace(cache, layers=layers, lengths=lengths)
            own_slot = used + jnp.arange(tokens.shape[1])[:, None]
            own |= (jnp.arange(slots)[None] == own_slot)[None]
            mask = tree_mask(behind, both(model, own))
            behind = replace(behind, lengths=lengths + used)
            positions = both(model, ctx.position[:, None] + ahead)
            logits, _, behind = model.forward(
                params, behind, both(model, tokens), positions, mask
            )
            shared = behind.layers, used + tokens.shape[1]
        logits = apply_cfg(logits, ctx.sampling, ctx.index[:, None] + ahead)
        return logits, own, shared

    nothing = jnp.zeros((len(ctx.root), 1, slots), bool)
    draft, (layers, _) = grow(ctx, step, nothing, (cache.layers, None))
    return draft, layers


def early_exit(
    config: TransformerConfig, layers: int, *, guided: bool = True
) -> DraftModel:
    """The first layers of a transformer, its final norm and its head, as its drafter.

    The drafter's parameters are the target's own. It works as far as the target was
    trained to be left early (LayerSkip, arXiv 2404.16710).

    Raises:
      ConfigError: there are not that many layers.
    """
    if not 1 <= layers < config.layers:
        raise ConfigError(
            f"layers={layers}: an early exit keeps 1 to {config.layers - 1} of the "
            f"target's {config.layers} layers"
        )
    return DraftModel(
        make_target(Transformer(replace(config, layers=layers)), guided=guided)
    )
