"""Coupled scales: a small model drafts whole token maps, a large one verifies them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.core.branches import repeat_branches
from jaxspec.core.generator import advance
from jaxspec.core.mesh_sync import group_max
from jaxspec.core.precision import full_precision
from jaxspec.core.result import Generation
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale.generator import NextScaleGenerator
from jaxspec.next_scale.plans import one_model
from jaxspec.next_scale.sampling import ScaleSampling
from jaxspec.next_scale.state import NextScaleState, NextScaleVariables
from jaxspec.tokenizers.multi_scale.scales import Scales
from jaxspec.typing import Array, BatchKeys, Bool, Key, PyTree


@dataclass(frozen=True)
class CoupledScales:
    """Implements `Generator`: drafted token maps, verified several at a time.

    The noise of a token depends on its position alone, so the map that the target would
    sample can be compared with the drafted one. A round drafts the next maps with the
    drafter, reads all of them in one pass of the target, and keeps maps up to the first
    that differs, whose place the target's own map takes. With `radius = 0` the tokens
    are those of the target alone (float32; up to near-ties): lossless. This is ours;
    CoDe (arXiv 2411.17787) lets the small model finish without verification.

    With a radius a drafted map is also kept if it moves the features by at most that
    much, as root mean square over all cells and channels, from where the target's own
    map would have moved them. Lossy; each map is within the radius of one that is
    sampled from the target's distribution after the maps before it.

    Sequences of a batch may be at different scales: a round begins at the earliest.
    Which maps are drafted then depends on the batch, and with it which of them a radius
    keeps; with `radius = 0` tokens do not depend on it.

    Attributes:
      target: model that verifies; its parameters are the first of the variables.
      drafter: model that drafts; its parameters are the second.
      scales: functions between token maps and features.
      sampling: settings that depend on the scale.
      window: largest number of maps of a pass of the target.
      radius: distance of features up to which a map is kept.
      cfg: whether an unconditional branch is computed.

    Raises:
      ConfigError: window or radius are impossible, or the models do not fit.
    """

    target: NextScale
    drafter: NextScale
    scales: Scales
    sampling: ScaleSampling
    window: int = 4
    radius: float = 0.0
    cfg: bool = True

    def __post_init__(self):
        if not 1 <= self.window <= len(self.scales):
            raise ConfigError(
                f"window={self.window}; choose 1 to {len(self.scales)} maps"
            )
        if not 0 <= self.radius < float("inf"):
            raise ConfigError(f"radius={self.radius} must be a number of at least 0")
        if self.target.config.mask_layers:
            raise ConfigError(
                "maps that are refined are not verified; choose a target without "
                "mask_layers, or generate with one_model"
            )
        if self.sampling.guided is not None:
            raise ConfigError("coupled scales are guided at every scale: guided=None")
        if self.sampling.smooth:
            raise ConfigError("mixtures of codes are not verified; use smooth=False")
        _ = self.base  # checks the models

    @property
    def base(self) -> NextScaleGenerator:
        """The target's generator, with a cache for the drafter."""
        plain = one_model(
            self.target, self.scales, sampling=self.sampling, refinement=None
        )
        return replace(plain, models=(self.target, self.drafter), cfg=self.cfg)

    @property
    def max_new_tokens(self) -> int:
        """Number of tokens of an image."""
        return self.scales.ends[-1]

    def init(
        self,
        variables: NextScaleVariables,
        prompt: PyTree,
        *,
        sampling: Sampling,
        keys: BatchKeys | Key[Array, ""],
        stopping: StoppingCriteria | None = None,
    ) -> NextScaleState:
        """First state of a batch, see `Generator.init`.

        Raises:
          ConfigError: prompts, keys and settings do not fit each other.
        """
        state = self.base.init(
            variables, prompt, sampling=sampling, keys=keys, stopping=stopping
        )
        counts = jnp.zeros((len(state.tokens), self.window), jnp.int32)
        return replace(state, stats=replace(state.stats, accepted=counts))

    def step(
        self, variables: NextScaleVariables, state: NextScaleState
    ) -> NextScaleState:
        """State after one more pass of the target."""
        last = len(self.scales) - 1
        first = jnp.min(jnp.where(state.done, last, state.scale))
        first = -group_max(-first)
        branches = [partial(self._round, first=k) for k in range(last + 1)]
        return jax.lax.switch(jnp.minimum(first, last), branches, variables, state)

    def done(self, state: NextScaleState) -> Bool[Array, "B"]:
        """Mask of the sequences that have ended."""
        return state.done

    def result(self, state: NextScaleState) -> Generation:
        """Tokens so far; `stats.accepted` counts rounds by the drafted maps kept."""
        return self.base.result(state)

    def generate(
        self, variables: NextScaleVariables, prompt: PyTree, **options: Any
    ) -> Generation:
        """Generates all scales; arguments are those of `init`."""
        state = self.init(variables, prompt, **options)
        return self.result(advance(self, variables, state))

    @full_precision
    def _round(self, variables, state, first):
        """Drafts and verifies maps from `first` on."""
        last = min(first + self.window, len(self.scales))
        drafts, vectors, caches = self._draft(variables, state, first, last)
        logits, cache = self.target.forward(
            variables.models[0],
            state.conditions[0],
            caches[0],
            repeat_branches(jnp.concatenate(vectors, axis=1), 2 if self.cfg else 1),
            first,
            last,
        )
        state = replace(state, caches=(cache, caches[1]))
        begin, active = self.scales.tokens_of(first).start, ~state.done
        ahead, good = state.scale, active
        kept, proposed = jnp.zeros_like(state.scale), state.stats.proposed
        for scale in range(first, last):
            here = self.scales.tokens_of(scale)
            own, _, finite = self.sampling.sample(
                logits[:, here.start - begin : here.stop - begin],
                state.sampling,
                state.keys,
                scale,
                here.start,
            )
            draft = drafts.get(scale)
            takes = good & ~state.done & (state.scale == scale)
            chosen, equal = own, jnp.zeros_like(good)
            if draft is not None:
                drafted = (active & (ahead <= scale)).astype(jnp.int32)
                proposed += drafted * (here.stop - here.start)
                equal = self._close(variables, draft, own, scale)
                chosen = jnp.where(equal[:, None], draft, own)
            state = self.base.accept(variables, state, scale, chosen, takes)
            finite = state.finite & (finite | ~takes)
            state = replace(state, finite=finite)
            kept += (takes & equal).astype(jnp.int32)
            good &= equal | (ahead > scale)
        stats, count = state.stats, active.astype(jnp.int32)
        rows = jnp.arange(len(kept))
        stats = replace(
            stats,
            calls=stats.calls + count,
            rounds=stats.rounds + 1,
            proposed=proposed,
            accepted=stats.accepted.at[rows, kept].add(count),
        )
        return replace(state, stats=stats)

    def _draft(
        self,
        variables: NextScaleVariables,
        state: NextScaleState,
        first: int,
        last: int,
    ) -> tuple[dict[int, Array], list[Array], Any]:
        """Drafted maps before the last one, and inputs of all, of a window.

        Sequences that are ahead have their own maps.
        """
        here = self.scales.tokens_of(first)
        vectors, drafts = [state.inputs[:, here]], {}
        # The drafter may not have read the map before the first one.
        before = max(first - 1, 0)
        start = self.scales.tokens_of(before).start
        given = state.inputs[:, start : here.stop]
        known = jnp.maximum(state.tokens, 0)
        features = jnp.zeros_like(state.features)
        if first:
            features = self.scales.features(variables.quantizer, known, first)
        caches = state.caches
        for scale in range(first, last - 1):
            logits, cache = self.drafter.forward(
                variables.models[1],
                state.conditions[1],
                caches[1],
                repeat_branches(given, 2 if self.cfg else 1),
                before if scale == first else scale,
                scale + 1,
            )
            caches = (caches[0], cache)
            here = self.scales.tokens_of(scale)
            tokens, _, _ = self.sampling.sample(
                logits[:, -(here.stop - here.start) :],
                state.sampling,
                state.keys,
                scale,
                here.start,
            )
            ahead = (state.scale > scale)[:, None]
            drafts[scale] = jnp.where(ahead, known[:, here], tokens)
            features += self.scales.added(variables.quantizer, drafts[scale], scale)
            given = self.scales.reduced(features, scale + 1)
            vectors.append(given)
        return drafts, vectors, caches

    def _close(self, variables, draft, own, scale) -> Bool[Array, "B"]:
        """Sequences whose drafted map is kept."""
        equal = jnp.all(draft == own, axis=1)
        if not self.radius:
            return equal
        added = partial(self.scales.added, variables.quantizer, scale=scale)
        moved = jnp.mean((added(draft) - added(own)) ** 2, axis=(1, 2, 3)) ** 0.5
        return equal | (moved <= self.radius)


def coupled_scales(
    target: NextScale,
    drafter: NextScale,
    scales: Scales,
    *,
    sampling: ScaleSampling | None = None,
    **options: Any,
) -> CoupledScales:
    """A target and a drafter with VAR's sampling, see `CoupledScales`.

    Args:
      target: model that verifies.
      drafter: model that drafts.
      scales: functions of the tokenizer of both.
      sampling: settings that depend on the scale; None for those of VAR.
      **options: further fields of `CoupledScales`.
    """
    sampling = sampling or ScaleSampling(len(scales))
    return CoupledScales(target, drafter, scales, sampling, **options)
