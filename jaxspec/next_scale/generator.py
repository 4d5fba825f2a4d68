"""Next-scale generation: every step samples all tokens of one scale."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.core.arguments import (
    batch_size,
    check_batch,
    check_keys,
    known_to_hold,
)
from jaxspec.core.branches import repeat_branches
from jaxspec.core.mesh_sync import group_max
from jaxspec.core.noise import batch_keys
from jaxspec.core.precision import full_precision
from jaxspec.core.result import Generation, LogProbs, Stats
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.local import LocalAttention
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.next_scale.skipping import TokenSkipping
from jaxspec.models.transformer.prompts import known_classes
from jaxspec.next_scale.refinement import Refinement
from jaxspec.next_scale.sampling import Samples, ScaleSampling
from jaxspec.next_scale.stages import Stage, check_generator
from jaxspec.next_scale.state import NextScaleState, NextScaleVariables
from jaxspec.speculative.prefix import checked_prefix, prefix_of, without_prefix
from jaxspec.tokenizers.multi_scale.scales import Scales
from jaxspec.typing import Array, BatchKeys, Bool, Float, Key, PyTree


@dataclass(frozen=True)
class NextScaleGenerator:
    """Implements `Generator` for next-scale models; static and hashable.

    A step makes one scale; `generate` makes all of them without a loop, in one program.
    Each stage names the model of its scale: one model for all (VAR, arXiv 2404.02905),
    a large one and then a small one (CoDe, arXiv 2411.17787, see `collaborative`), or
    one model with fewer of its layers at late scales (VARiant, arXiv 2511.16546). A
    model that begins at a later scale first reads all earlier ones in one pass.

    The noise of a token depends on the key of its sequence, its position and, where
    maps are refined, the number of the pass, so tokens depend neither on the batch nor
    on how steps are run. With `Prefixed` prompts the first tokens, such as those of the
    first scales of an image, are given.

    Attributes:
      models: models, whose scales and vocabulary are equal.
      scales: functions between token maps and features.
      stages: model of each scale.
      sampling: settings that depend on the scale.
      cfg: whether an unconditional branch is computed.
      limit: largest number of new tokens; None for all of an image.
      prefix: number of given tokens.
      record_log_probs: whether log-probabilities of the tokens are recorded.
      refinement: further passes of each map, for models with `mask_layers` (HMAR,
        arXiv 2506.04421); None for none.
      skipping: tokens of the last maps that layers leave out; None for none. Lossy.
      local: tokens that those of the last maps attend to; None for all. Lossy.

    Raises:
      ConfigError: models, scales and stages do not fit each other.
    """

    models: tuple[NextScale, ...]
    scales: Scales
    stages: tuple[Stage, ...]
    sampling: ScaleSampling
    cfg: bool = True
    limit: int | None = None
    prefix: int = 0
    record_log_probs: bool = False
    refinement: Refinement | None = None
    skipping: TokenSkipping | None = None
    local: LocalAttention | None = None

    def __post_init__(self):
        check_generator(self)

    def refines(self, stage: Stage) -> bool:
        """Whether the model of a stage can refine maps."""
        return self.models[stage.model].config.mask_layers > 0 and stage.layers is None

    @property
    def branches(self) -> int:
        """Branches of classifier-free guidance."""
        return 2 if self.cfg else 1

    @property
    def max_new_tokens(self) -> int:
        """Largest number of tokens of a sequence."""
        room = self.scales.ends[-1] - self.prefix
        return room if self.limit is None else min(room, self.limit)

    @full_precision
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
        config = self.models[0].config
        prompt, known = checked_prefix(prompt, config.vocab_size)
        classes = known_classes(without_prefix(prompt), config.classes)
        batch = batch_size(classes, keys)
        given = prefix_of(prompt, batch)
        if given.shape[1] != self.prefix:
            raise ConfigError(
                f"{given.shape[1]} given tokens do not fit a generator of {self.prefix}"
            )
        keys = keys if keys.ndim else batch_keys(keys, batch)
        check_keys(keys)
        check_batch(batch, prompt=classes)
        if not isinstance(variables, NextScaleVariables):
            raise ConfigError("variables are no NextScaleVariables(models, quantizer)")
        if len(variables.models) != len(self.models):
            raise ConfigError(
                f"variables of {len(variables.models)} models do not fit a generator "
                f"of {len(self.models)}"
            )
        if not self.cfg and known_to_hold((sampling.cfg_scale != 1).any()):
            raise ConfigError("guidance needs an unconditional branch: cfg=True")
        stopping = stopping or StoppingCriteria.create(
            max_new_tokens=self.max_new_tokens
        )
        rows = self.branches * batch
        null = jnp.arange(rows) >= batch
        classes = repeat_branches(classes, self.branches)
        conditions = tuple(
            model.condition(params, classes, null)
            for model, params in zip(self.models, variables.models, strict=True)
        )
        caches = tuple(
            model.init_cache(rows, condition.dtype)
            for model, condition in zip(self.models, conditions, strict=True)
        )
        length, grid = self.scales.ends[-1], self.scales.grid
        zeros = jnp.zeros(batch, jnp.int32)
        return NextScaleState(
            tokens=jnp.full((batch, length), -1, jnp.int32),
            given=jnp.copy(given),
            scale=zeros,
            features=jnp.zeros((batch, grid, grid, config.code_dim), jnp.float32),
            inputs=jnp.zeros((batch, length, config.code_dim), jnp.float32),
            caches=caches,
            outputs=()
            if self.skipping is None
            else tuple(
                model.init_outputs(rows, condition.dtype, self.skipping)
                for model, condition in zip(self.models, conditions, strict=True)
            ),
            conditions=conditions,
            # Copied, because the state may be donated while the arguments may not.
            keys=jax.random.clone(keys),
            sampling=jax.tree.map(jnp.copy, sampling.for_batch(batch)),
            stopping=jax.tree.map(jnp.copy, stopping.for_batch(batch)),
            lengths=jnp.copy(zeros),
            done=zeros > 0,
            stats=Stats.without_drafts(jnp.copy(zeros)),
            finite=zeros == 0 if known is None else known,
            log_probs=jnp.zeros((batch, length), jnp.float32)
            if self.record_log_probs
            else None,
        )

    def step(
        self, variables: NextScaleVariables, state: NextScaleState
    ) -> NextScaleState:
        """State after one more scale.

        Of sequences at different scales, those at the earliest one advance.
        """
        last = len(self.scales) - 1
        scale = jnp.min(jnp.where(state.done, last, state.scale))
        scale = -group_max(-scale)  # all groups of devices take the same branch
        branches = [partial(self.make_scale, scale=k) for k in range(last + 1)]
        return jax.lax.switch(jnp.minimum(scale, last), branches, variables, state)

    def done(self, state: NextScaleState) -> Bool[Array, "B"]:
        """Mask of the sequences that have ended."""
        return state.done

    def result(self, state: NextScaleState) -> Generation:
        """Tokens generated so far, without given ones."""
        end = self.prefix + self.max_new_tokens
        tokens = state.tokens[:, self.prefix : end]
        exists = jnp.arange(self.max_new_tokens)[None] < state.lengths[:, None]
        log_probs = None
        if state.log_probs is not None:
            recorded = state.log_probs[:, self.prefix : end]
            log_probs = LogProbs(jnp.where(exists, recorded, 0.0))
        return Generation(
            jnp.where(exists, tokens, -1),
            state.lengths,
            state.stats,
            state.finite,
            log_probs,
            state.features if self.sampling.smooth else None,
        )

    def generate(
        self, variables: NextScaleVariables, prompt: PyTree, **options: Any
    ) -> Generation:
        """Generates all scales without a loop; arguments are those of `init`."""
        state = self.init(variables, prompt, **options)
        for scale in range(len(self.scales)):
            state = self.make_scale(variables, state, scale)
            if self.scales.ends[scale] >= self.prefix + self.max_new_tokens:
                break
        return self.result(state)

    @full_precision
    def make_scale(
        self, variables: NextScaleVariables, state: NextScaleState, scale: int
    ) -> NextScaleState:
        """Samples a scale, in the sequences that it is the next one of.

        Args:
          variables: arrays that all sequences share.
          state: state of the batch.
          scale: the scale; static.
        """
        logits, caches, outputs = self._logits(variables, state, scale)
        here = self.scales.tokens_of(scale)
        tokens, log_p, finite = self.sampling.sample(
            logits, state.sampling, state.keys, scale, here.start
        )
        given, passes = state.given[:, here], 1
        tokens = jnp.concatenate([given, tokens[:, given.shape[1] :]], axis=1)
        if self.refinement is not None:
            passes = self.refinement.passes(scale)
            again = partial(self._sample_masked, variables, state, scale)
            tokens, log_p, good = self.refinement.refine(
                scale, tokens, log_p, again, given=given.shape[1]
            )
            finite &= good
        advances = (state.scale == scale) & ~state.done
        vectors = None
        if self.sampling.smooth:
            book = variables.quantizer["codebook"].astype(jnp.float32)
            weights = self.sampling.mixture(
                logits, state.sampling, state.keys, scale, here.start
            )
            vectors = jnp.einsum("btv,vc->btc", weights, book)
            vectors = jnp.concatenate([book[given], vectors[:, given.shape[1] :]], 1)
        state = self.accept(variables, state, scale, tokens, advances, vectors)
        if state.log_probs is not None:
            log_probs = jnp.where(advances[:, None], log_p, state.log_probs[:, here])
            log_probs = state.log_probs.at[:, here].set(log_probs)
            state = replace(state, log_probs=log_probs)
        calls = state.stats.calls + passes * advances.astype(jnp.int32)
        stats = replace(state.stats, calls=calls, rounds=state.stats.rounds + 1)
        return replace(
            state,
            caches=caches,
            outputs=outputs,
            stats=stats,
            finite=state.finite & (finite | ~advances),
        )

    @full_precision
    def accept(
        self,
        variables: NextScaleVariables,
        state: NextScaleState,
        scale: int,
        tokens: Array,
        advances: Bool[Array, "B"],
        vectors: Float[Array, "B T C"] | None = None,
    ) -> NextScaleState:
        """Adds the tokens of a scale to the sequences that advance.

        Args:
          variables: arrays that all sequences share.
          state: state of the batch.
          scale: the scale; static.
          tokens: int32 [B, T], its tokens.
          advances: sequences that take them.
          vectors: vectors that the map adds; None for the codes of the tokens.
        """
        here, total = self.scales.tokens_of(scale), state.tokens
        new = jnp.where(advances[:, None], tokens, total[:, here])
        total = total.at[:, here].set(new)
        if vectors is None:
            added = self.scales.added(variables.quantizer, tokens, scale)
        else:
            added = self.scales.spread(variables.quantizer, vectors, scale)
        features = state.features + jnp.where(_spread(advances, added), added, 0.0)
        inputs, last = state.inputs, scale == len(self.scales) - 1
        if not last:
            new = self.scales.reduced(features, scale + 1)
            there = self.scales.tokens_of(scale + 1)
            new = jnp.where(advances[:, None, None], new, inputs[:, there])
            inputs = inputs.at[:, there].set(new)
        end = min(here.stop, self.prefix + self.max_new_tokens)
        new_tokens = jnp.maximum(end - self.prefix, 0)
        lengths = jnp.minimum(new_tokens, state.stopping.max_new_tokens)
        stops = state.stopping.is_stop(total[:, self.prefix : end])
        stopped = jnp.any(stops, axis=1)
        first = jnp.argmax(stops, axis=1).astype(jnp.int32) + 1 if stops.shape[1] else 0
        lengths = jnp.where(stopped, jnp.minimum(first, lengths), lengths)
        ended = last | stopped | (new_tokens >= state.stopping.max_new_tokens)
        ended |= new_tokens >= self.max_new_tokens
        return replace(
            state,
            tokens=total,
            features=features,
            inputs=inputs,
            scale=jnp.where(advances, scale + 1, state.scale),
            lengths=jnp.where(advances, lengths, state.lengths),
            done=state.done | (advances & ended),
        )

    def _sample_masked(self, variables, state, scale, tokens, masked, step) -> Samples:
        """Samples a map again in which some tokens are masked, without guidance."""
        i, batch = self.stages[scale].model, len(tokens)
        here = self.scales.tokens_of(scale)
        logits = self.models[i].refine(
            variables.models[i],
            state.conditions[i][:batch],
            state.inputs[:, here],
            self.scales.own(variables.quantizer, tokens, scale),
            masked,
            scale,
            scale + 1,
        )
        plain = replace(state.sampling, cfg_scale=jnp.ones(batch, jnp.float32))
        # Noise of its own in each pass: that of positions after the last one.
        start = here.start + step * self.scales.ends[-1]
        return self.sampling.sample(logits, plain, state.keys, scale, start)

    def _logits(self, variables, state, scale):
        """Logits [R, T, V] of a scale, and the caches and `outputs` after its pass."""
        stage = self.stages[scale]
        earlier = [k for k in range(scale) if self.stages[k].model == stage.model]
        first = earlier[-1] + 1 if earlier else 0
        if self.models[stage.model].config.attends == "own":
            first = scale
        start = self.scales.tokens_of(first).start
        here = self.scales.tokens_of(scale)
        guided = self.sampling.guided
        branches = self.branches if guided is None or scale < guided else 1
        vectors = repeat_branches(state.inputs[:, start : here.stop], branches)
        i, rows = stage.model, len(vectors)
        cache, outputs = jax.tree.map(
            lambda x: x[:rows], (state.caches[i], state.outputs)
        )
        arguments = variables.models[i], state.conditions[i][:rows], cache
        if self.skipping is None:
            logits, cache = self.models[i].forward(
                *arguments, vectors, first, scale + 1, stage.layers, self.local
            )
        else:
            logits, cache, kept = self.models[i].forward_chosen(
                *arguments, outputs[i], vectors, scale, stage.layers, self.skipping
            )
            outputs = (kept,)
        old = state.caches[i], state.outputs
        if branches < self.branches:  # later scales read conditional rows alone
            cache, outputs = jax.tree.map(
                lambda old, new: old.at[:rows].set(new), old, (cache, outputs)
            )
        caches = (*state.caches[:i], cache, *state.caches[i + 1 :])
        return logits[:, here.start - start :], caches, outputs


def _spread(mask, like):
    """A mask [B] with the axes of an array."""
    return mask.reshape(-1, *(1,) * (like.ndim - 1))
