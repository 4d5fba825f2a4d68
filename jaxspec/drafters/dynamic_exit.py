"""DEL: where to leave the drafter, and how far to draft, decided every round."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.config import TransformerConfig
from jaxspec.drafters.grow import expansions
from jaxspec.drafters.shared import scores_of, shared_target_params
from jaxspec.drafters.small_model import (
    ModelState,
    begin,
    both,
    catch_up,
    grow_by_levels,
)
from jaxspec.errors import ConfigError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.sampling import apply_cfg
from jaxspec.spec.target import Target
from jaxspec.spec.together import group_max
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class ExitState:
    """What the drafter carries between rounds.

    Attributes:
      model: of the deepest exit.
      logits: float32 [B, A, V], what the target said after the last accepted path.
      rates: float32 [B, X], moving average of the chance that an exit's draft is
        accepted.
    """

    model: ModelState
    logits: Float[Array, "B A V"]
    rates: Float[Array, "B X"]


@dataclass(frozen=True)
class DynamicExit:
    """Leaves a model after one of several layers, whichever pays best now.

    Whatever was committed is read by all layers up to the deepest exit, in the pass
    that an early exit takes anyway; so the overlap of every exit's law with the
    target's is known for each committed token ("shadow tokens"), and its moving average
    tells the exits' worth: expected tokens of a chain of `d` drafts over the cost in
    layers, `(1 - a^(d + 1)) / (1 - a) / (d l + L)`. The best exit of the batch drafts;
    each row keeps the levels that pay for it. (DEL, arXiv 2504.05598; the formula is a
    reading of it.)

    Parameters: those of the model. With the target's own configuration it is the
    target's first layers that draft; a separate model trained to be cut anywhere makes
    it S2D (arXiv 2407.01955).

    Attributes:
      config: of the model.
      exits: numbers of layers, rising.
      verify_cost: `L`, cost of the target's pass in layers of the model.
      guided: follow the target's guidance.
      decay: weight of the past in the averages.
    """

    config: TransformerConfig
    exits: tuple[int, ...]
    verify_cost: float | None = None
    guided: bool = True
    decay: float = 0.9

    def __post_init__(self):
        rising = all(a < b for a, b in zip(self.exits, self.exits[1:], strict=False))
        if not self.exits or not rising or not 1 <= self.exits[0]:
            raise ConfigError(f"exits={self.exits} must rise from 1")
        if self.exits[-1] > self.config.layers or not 0 <= self.decay < 1:
            raise ConfigError(
                f"exits={self.exits}, decay={self.decay}: the model has "
                f"{self.config.layers} layers, and decay is in [0, 1)"
            )

    def _model(self, layers: int, feature_layers: tuple[int, ...] = ()) -> Target:
        shorter = Transformer(replace(self.config, layers=layers))
        return make_target(shorter, guided=self.guided, feature_layers=feature_layers)

    @property
    def _whole(self) -> Target:
        return self._model(self.exits[-1], tuple(n - 1 for n in self.exits))

    def init(self, params: Params, ctx: InitContext) -> ExitState:
        """See `spec.draft.Drafter`."""
        model = begin(self._whole, params, ctx, expansions(ctx.tree)[0])
        path, vocabulary = ctx.tree.depth + 1, self.config.vocab_size
        return ExitState(
            model,
            jnp.zeros((ctx.rows, path, vocabulary), jnp.float32),
            jnp.full((ctx.rows, len(self.exits)), 0.5),
        )

    def propose(
        self, params: Params, state: ExitState, ctx: DraftContext
    ) -> tuple[Draft, ExitState]:
        """See `spec.draft.Drafter`."""
        whole, inner = self._whole, state.model
        _, features, cache, last = catch_up(whole, params, inner, ctx)
        lengths = cache.lengths + both(whole, inner.counts)
        shared = shared_target_params(self.config, params, norm=True)
        parts = jnp.split(features, len(self.exits), axis=-1)
        raw = [scores_of(self.config, shared, part) for part in parts]
        rates = self._learn(state, raw, ctx, last)
        layers, depth = self._choose(rates, ctx.tree.depth)

        def draft_with(i, cache):
            place = both(whole, last)[:, None, None]
            first = jnp.take_along_axis(raw[i], place, axis=1)
            upper = replace(cache, layers=cache.layers[: self.exits[i]])
            model = self._model(self.exits[i])
            return grow_by_levels(model, params, upper, lengths, first, ctx)[0]

        branches = [partial(draft_with, i) for i in range(len(self.exits))]
        draft = jax.lax.switch(layers, branches, cache)
        kept = draft.topology(ctx.tree).depths <= depth[:, None]
        inner = replace(
            inner,
            cache=replace(cache, lengths=lengths),
            counts=jnp.zeros_like(inner.counts),
        )
        return draft.keep(kept, past=True), ExitState(inner, state.logits, rates)

    def observe(
        self, params: Params, state: ExitState, result: RoundResult
    ) -> ExitState:
        """See `spec.draft.Drafter`."""
        inner = replace(state.model, tokens=result.tokens, counts=result.counts)
        return ExitState(inner, result.on_path(result.logits), state.rates)

    def _learn(self, state, raw, ctx, last) -> Float[Array, "B X"]:
        """Averages with the overlap at each committed token but the root."""
        first = (ctx.index - last)[:, None]
        ahead = first + jnp.arange(len(state.logits[0]))[None]
        # What followed the token in place j, the target said after node j + 1.
        wanted = jax.nn.softmax(state.logits[:, 1:])
        use = jnp.arange(wanted.shape[1])[None] < last[:, None]
        rates = []
        for i, logits in enumerate(raw):
            q = jax.nn.softmax(apply_cfg(logits, ctx.sampling, ahead)[:, :-1])
            shared = jnp.sum(jnp.minimum(wanted, q), axis=-1)
            mean = jnp.sum(jnp.where(use, shared, 0.0), axis=1)
            mean /= jnp.maximum(jnp.sum(use, axis=1, dtype=mean.dtype), 1)
            old = state.rates[:, i]
            new = self.decay * old + (1 - self.decay) * mean
            rates.append(jnp.where(last > 0, new, old))
        return jnp.stack(rates, axis=1)

    def _choose(
        self, rates: Float[Array, "B X"], depth: int
    ) -> tuple[Int[Array, ""], Int[Array, "B"]]:
        """The exit of the batch, and how deep each row's draft goes."""
        cost = self.config.layers if self.verify_cost is None else self.verify_cost
        a = jnp.clip(rates, 0.0, 1.0 - 1e-4)[..., None]  # [B, X, 1]
        d = jnp.arange(1, depth + 1, dtype=a.dtype)[None, None]
        layers = jnp.array(self.exits, a.dtype)[None, :, None]
        tokens = (1.0 - a ** (d + 1)) / (1.0 - a)
        worth = tokens / (d * layers + cost)  # [B, X, depth]
        best = jnp.argmax(jnp.mean(jnp.max(worth, axis=2), axis=0))
        best = group_max(best)  # groups of a mesh draft from the same exit
        return best, jnp.argmax(worth[:, best], axis=1) + 1
