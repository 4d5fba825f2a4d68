"""Generation of continuous tokens: every step samples some of them, in random order."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from jaxspec.core.arguments import (
    batch_size,
    check_batch,
    check_keys,
    known_to_hold,
)
from jaxspec.core.branches import repeat_branches
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.core.mesh_sync import group_max
from jaxspec.core.noise import batch_keys
from jaxspec.core.numbers import WHOLE
from jaxspec.core.precision import full_precision
from jaxspec.core.result import Generation, Stats
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.mar.head import head_noise, sample_tokens
from jaxspec.mar.schedule import UnmaskingSchedule, random_order
from jaxspec.mar.state import MARState, MARVariables
from jaxspec.models.mar.model import MAR
from jaxspec.models.transformer.prompts import known_classes
from jaxspec.typing import Array, BatchKeys, Bool, Key, PyTree


@dataclass(frozen=True)
class MARGenerator:
    """Implements `Generator` for masked models over continuous tokens; static.

    Each step reads the known tokens and samples some of the others by the diffusion
    head (MAR, arXiv 2406.11838). `Generation.tokens` are float32 [B, T, C], -inf where
    there is no token yet.

    The order of the tokens and the noise of each are functions of the key of the
    sequence, so that tokens do not depend on the batch. A temperature is the factor of
    the noise of a chain's steps; at 0 its first state is still random. The encoder's
    capacity for known tokens grows in a few stages, each a branch of the one program:
    masked tokens are not computed, with static shapes.

    Attributes:
      model: the model.
      schedule: steps of the generation.
      head: steps of the chain of the diffusion head.
      cfg: whether an unconditional branch is computed.
      stages: number of capacities of the encoder.

    Raises:
      ConfigError: model and schedules do not fit each other.
    """

    model: MAR
    schedule: UnmaskingSchedule
    head: DiffusionSchedule = DiffusionSchedule()
    cfg: bool = True
    stages: int = 4

    def __post_init__(self):
        config = self.model.config
        if self.schedule.tokens != config.sequence_length:
            raise ConfigError(
                f"a schedule of {self.schedule.tokens} tokens does not fit a model of "
                f"{config.sequence_length}"
            )
        if self.head.trained != config.diffusion_steps:
            raise ConfigError(
                f"a chain for a diffusion of {self.head.trained} steps does not fit a "
                f"head that was trained for {config.diffusion_steps}"
            )
        if not 1 <= self.stages <= self.schedule.tokens:
            raise ConfigError(
                f"stages={self.stages}; choose 1 to {self.schedule.tokens} stages"
            )

    @property
    def branches(self) -> int:
        """Branches of classifier-free guidance."""
        return 2 if self.cfg else 1

    @property
    def max_new_tokens(self) -> int:
        """Number of tokens of an image."""
        return self.schedule.tokens

    @full_precision
    def init(
        self,
        variables: MARVariables,
        prompt: PyTree,
        *,
        sampling: Sampling,
        keys: BatchKeys | Key[Array, ""],
        stopping: StoppingCriteria | None = None,
    ) -> MARState:
        """First state of a batch, see `Generator.init`.

        Raises:
          ConfigError: prompts, keys and settings do not fit each other, or settings are
            those of tokens that have a vocabulary.
        """
        config = self.model.config
        classes = known_classes(prompt, config.classes)
        batch = batch_size(classes, keys)
        keys = keys if keys.ndim else batch_keys(keys, batch)
        check_keys(keys)
        check_batch(batch, prompt=classes)
        if not isinstance(variables, MARVariables):
            raise ConfigError("variables are no MARVariables(params)")
        if not self.cfg and known_to_hold((sampling.cfg_scale != 1).any()):
            raise ConfigError("guidance needs an unconditional branch: cfg=True")
        stopping = stopping or StoppingCriteria.create(
            max_new_tokens=self.max_new_tokens
        )
        _check_settings(sampling, stopping)
        rows = self.branches * batch
        condition = self.model.condition(
            variables.params,
            repeat_branches(classes, self.branches),
            jnp.arange(rows) >= batch,
        )
        zeros = jnp.zeros(batch, jnp.int32)
        shape = (batch, config.sequence_length, config.channels)
        return MARState(
            latents=jnp.zeros(shape, jnp.float32),
            order=random_order(keys, config.sequence_length),
            steps=zeros,
            condition=condition,
            # Copied, because the state may be donated while the arguments may not.
            keys=jax.random.clone(keys),
            sampling=jax.tree.map(jnp.copy, sampling.for_batch(batch)),
            stopping=jax.tree.map(jnp.copy, stopping.for_batch(batch)),
            done=zeros > 0,
            stats=Stats.without_drafts(jnp.copy(zeros)),
            finite=zeros == 0,
        )

    @full_precision
    def step(self, variables: MARVariables, state: MARState) -> MARState:
        """State after one more step of every sequence that has not ended."""
        schedule, total = self.schedule, self.schedule.tokens
        left = jnp.asarray(schedule.masked)
        at = jnp.minimum(state.steps, schedule.steps - 1)
        masked, after = left[at], left[at + 1]
        known = total - jnp.min(jnp.where(state.done, total, masked))
        # All groups of devices take the same branch.
        stage = -(-group_max(known) * self.stages // total)
        branches = [
            partial(self._conditions, capacity=-(-total * (i + 1) // self.stages))
            for i in range(self.stages)
        ]
        conditions = jax.lax.switch(
            jnp.clip(stage - 1, 0, self.stages - 1), branches, variables, state, masked
        )
        # Tokens of the step, and further ones that are left out.
        index = after[:, None] + jnp.arange(schedule.most, dtype=jnp.int32)[None]
        taken = (index < masked[:, None]) & ~state.done[:, None]
        limit = state.stopping.max_new_tokens
        taken &= index >= total - limit[:, None]
        places = jnp.take_along_axis(state.order, jnp.minimum(index, total - 1), axis=1)
        chosen = repeat_branches(places, self.branches)
        sampled = sample_tokens(
            self.model,
            variables.params,
            self.head,
            jnp.take_along_axis(conditions, chosen[..., None], axis=1),
            head_noise(state.keys, places, self.head.count, self.model.config.channels),
            schedule.scale(state.sampling.cfg_scale, at),
            state.sampling.temperature,
        )
        row = jnp.arange(len(places))[:, None]
        places = jnp.where(taken, places, total)  # beyond the end: dropped
        latents = state.latents.at[row, places].set(sampled, mode="drop")
        good = jnp.isfinite(sampled).all(-1) | ~taken
        live = ~state.done
        steps = state.steps + live.astype(jnp.int32)
        lengths = total - left[steps]
        done = (steps == schedule.steps) | (lengths >= limit)
        stats = replace(
            state.stats,
            calls=state.stats.calls + live.astype(jnp.int32),
            rounds=state.stats.rounds + 1,
        )
        return replace(
            state,
            latents=latents,
            steps=steps,
            done=state.done | done,
            stats=stats,
            finite=state.finite & good.all(axis=1),
        )

    def done(self, state: MARState) -> Bool[Array, "B"]:
        """Mask of the sequences that have ended."""
        return state.done

    def result(self, state: MARState) -> Generation:
        """Tokens generated so far, float32 [B, T, C]; -inf where there is none yet."""
        masked, total = (
            jnp.asarray(self.schedule.masked)[state.steps],
            self.max_new_tokens,
        )
        masked = jnp.maximum(masked, total - state.stopping.max_new_tokens)
        rank = jnp.argsort(state.order, axis=1)
        known = rank >= masked[:, None]
        return Generation(
            jnp.where(known[..., None], state.latents, -jnp.inf),
            total - masked,
            state.stats,
            state.finite,
        )

    def _conditions(self, variables, state, masked, capacity):
        """Conditions of the head at all tokens."""
        latents, order, masked = (
            repeat_branches(x, self.branches)
            for x in (state.latents, state.order, masked)
        )
        return self.model.token_conditions(
            variables.params, state.condition, latents, order, masked, capacity
        )


def _check_settings(sampling: Sampling, stopping: StoppingCriteria) -> None:
    """Raises `ConfigError` for settings that continuous tokens do not have."""
    if known_to_hold((stopping.stop_tokens >= 0).any()):
        raise ConfigError("continuous tokens have no numbers: leave out stop_tokens")
    if known_to_hold((sampling.cfg_tokens < WHOLE).any()):
        raise ConfigError("every step is guided: leave out cfg_interval")
    if known_to_hold((sampling.top_k > 0).any() | (sampling.top_p < 1).any()):
        raise ConfigError(
            "continuous tokens have no vocabulary to filter: leave out top_k and top_p"
        )
