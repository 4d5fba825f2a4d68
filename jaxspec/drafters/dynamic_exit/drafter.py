"""DEL: early-exit drafting with exit layer and draft length chosen every round."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.config import TransformerConfig
from jaxspec.core.branches import repeat_branches
from jaxspec.core.logits import apply_cfg
from jaxspec.core.mesh_sync import group_max
from jaxspec.drafters.common.target_params import shared_target_params, target_logits
from jaxspec.drafters.draft_model.drafter import (
    ModelState,
    grow_by_levels,
    prefill,
    read_committed,
)
from jaxspec.drafters.tree_drafting import expansions
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.target import Target
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class ExitState:
    """State of `DynamicExit` between rounds.

    Attributes:
      model: state of the model cut at the deepest exit.
      logits: float32 [B, A, V], the target's logits on the last accepted path.
      rates: float32 [B, exits], moving averages of each exit's acceptance probability.
    """

    model: ModelState
    logits: Float[Array, "B A V"]
    rates: Float[Array, "B exits"]


@dataclass(frozen=True)
class DynamicExit:
    """Drafts with a model cut after one of several layers, chosen every round.

    All committed tokens are read by the layers up to the deepest exit, in the pass that
    an early exit needs anyway. So for each committed token the overlap between the
    distributions of every exit and of the target is known ("shadow tokens"). Its moving
    average `a` gives the value of an exit with `l` layers and a chain of `d` drafted
    tokens: expected tokens per cost in layers, `(1 - a^(d + 1)) / (1 - a) / (d l + c)`,
    where `c` is `verify_cost`. The exit with the best mean over the batch drafts; each
    sequence keeps the number of levels with the best value. (DEL, arXiv 2504.05598; the
    formula is our reading of the paper.)

    Parameters: those of the model. With the target's own configuration and parameters,
    its first layers draft; with a separate model trained with several exits, this is
    S2D (arXiv 2407.01955).

    Attributes:
      config: configuration of the model.
      exits: numbers of layers, ascending.
      verify_cost: cost of the target's pass in layers of the model; None for the
        model's number of layers.
      cfg: whether the model uses the target's CFG scale.
      decay: weight of the past in the moving averages.
    """

    config: TransformerConfig
    exits: tuple[int, ...]
    verify_cost: float | None = None
    cfg: bool = True
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
        """Makes the model cut after some layers."""
        shorter = Transformer(replace(self.config, layers=layers))
        return shorter.as_target(cfg=self.cfg, feature_layers=feature_layers)

    @property
    def _deepest(self) -> Target:
        """The model cut at the deepest exit; its features are those of all exits."""
        return self._model(self.exits[-1], tuple(n - 1 for n in self.exits))

    def init(self, params: Params, ctx: InitContext) -> ExitState:
        """See `Drafter`."""
        model = prefill(self._deepest, params, ctx, expansions(ctx.tree)[0])
        path, vocabulary = ctx.tree.depth + 1, self.config.vocab_size
        return ExitState(
            model,
            jnp.zeros((ctx.batch, path, vocabulary), jnp.float32),
            jnp.full((ctx.batch, len(self.exits)), 0.5),
        )

    def propose(
        self, params: Params, state: ExitState, ctx: DraftContext
    ) -> tuple[Draft, ExitState]:
        """See `Drafter`."""
        deepest, model_state = self._deepest, state.model
        branches = deepest.branches
        _, features, cache, last = read_committed(deepest, params, model_state, ctx)
        lengths = cache.lengths + repeat_branches(model_state.counts, branches)
        cache = replace(cache, lengths=lengths)
        shared = shared_target_params(self.config, params, norm=True)
        by_exit = jnp.split(features, len(self.exits), axis=-1)
        logits = [target_logits(self.config, shared, x) for x in by_exit]
        rates = self._update_rates(state, logits, ctx, last)
        exit_index, depth = self._choose(rates, ctx.tree.depth)

        def draft_with(i, cache):
            index = repeat_branches(last, branches)[:, None, None]
            root_logits = jnp.take_along_axis(logits[i], index, axis=1)
            cut = replace(cache, layers=cache.layers[: self.exits[i]])
            model = self._model(self.exits[i])
            return grow_by_levels(model, params, cut, root_logits, ctx)[0]

        drafts = [partial(draft_with, i) for i in range(len(self.exits))]
        draft = jax.lax.switch(exit_index, drafts, cache)
        keep = draft.topology(ctx.tree).depths <= depth[:, None]
        counts = jnp.zeros_like(model_state.counts)
        model_state = replace(model_state, cache=cache, counts=counts)
        new = ExitState(model_state, state.logits, rates)
        return draft.keep(keep, past=True), new

    def observe(
        self, params: Params, state: ExitState, result: RoundResult
    ) -> ExitState:
        """See `Drafter`."""
        model = replace(state.model, tokens=result.tokens, counts=result.counts)
        return ExitState(model, result.on_path(result.logits), state.rates)

    def _update_rates(self, state, logits, ctx, last) -> Float[Array, "B exits"]:
        """Averages the overlap at each committed token before the root."""
        first = (ctx.index - last)[:, None]
        index = first + jnp.arange(len(state.logits[0]))[None]
        # The exits' logits after token `j` compare with the target's at `j + 1`.
        p = jax.nn.softmax(state.logits[:, 1:])
        use = jnp.arange(p.shape[1])[None] < last[:, None]
        rates = []
        for i, exit_logits in enumerate(logits):
            q = jax.nn.softmax(apply_cfg(exit_logits, ctx.sampling, index)[:, :-1])
            overlap = jnp.sum(jnp.minimum(p, q), axis=-1)
            mean = jnp.sum(jnp.where(use, overlap, 0.0), axis=1)
            mean /= jnp.maximum(jnp.sum(use, axis=1, dtype=mean.dtype), 1)
            old = state.rates[:, i]
            new = self.decay * old + (1 - self.decay) * mean
            rates.append(jnp.where(last > 0, new, old))
        return jnp.stack(rates, axis=1)

    def _choose(
        self, rates: Float[Array, "B exits"], depth: int
    ) -> tuple[Int[Array, ""], Int[Array, "B"]]:
        """Chooses the exit of the batch, and the draft depth of each sequence."""
        cost = self.config.layers if self.verify_cost is None else self.verify_cost
        a = jnp.clip(rates, 0.0, 1.0 - 1e-4)[..., None]  # [B, exits, 1]
        d = jnp.arange(1, depth + 1, dtype=a.dtype)[None, None]
        layers = jnp.array(self.exits, a.dtype)[None, :, None]
        tokens = (1.0 - a ** (d + 1)) / (1.0 - a)
        value = tokens / (d * layers + cost)  # [B, exits, depth]
        best = jnp.argmax(jnp.mean(jnp.max(value, axis=2), axis=0))
        best = group_max(best)  # groups of a mesh draft from the same exit
        return best, jnp.argmax(value[:, best], axis=1) + 1
