"""Generation of continuous tokens: every step samples some of them, in random order."""

from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config.checks import whole
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
from jaxspec.core.unmasking import random_order
from jaxspec.errors import ConfigError
from jaxspec.mar.cells import masked_tokens, of_places, step_cells, with_tokens
from jaxspec.mar.head import ChainEnd, head_noise, run_chains
from jaxspec.mar.schedule import UnmaskingSchedule
from jaxspec.mar.state import MARState, MARVariables
from jaxspec.models.mar.model import MAR
from jaxspec.models.transformer.prompts import known_classes
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Key, Params, PyTree


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
      last_count: number of steps of the chain in the last step; in between it is
        interpolated from `head.count` on (DiSA, arXiv 2505.20297). None for the same in
        all steps.
      cfg: whether an unconditional branch is computed.
      stages: number of capacities of the encoder.

    Raises:
      ConfigError: model and schedules do not fit each other.
    """

    model: MAR
    schedule: UnmaskingSchedule
    head: DiffusionSchedule = DiffusionSchedule()
    last_count: int | None = None
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

        if self.last_count is not None:
            whole(self, 2, "last_count")
            replace(self.head, count=self.last_count)  # checks it

    @cached_property
    def chains(self) -> tuple[tuple[DiffusionSchedule, ...], np.ndarray]:
        """Schedules of chains, and int32 [steps], the one of each step."""
        last = self.head.count if self.last_count is None else self.last_count
        counts = np.linspace(self.head.count, last, self.schedule.steps).round()
        different, which = np.unique(counts.astype(int), return_inverse=True)
        schedules = tuple(replace(self.head, count=int(n)) for n in different)
        return schedules, which.reshape(-1).astype(np.int32)

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
        check_settings(sampling, stopping)
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
        limit = state.stopping.max_new_tokens
        places, taken = step_cells(self.schedule, state.order, state.steps, limit)
        taken &= ~state.done[:, None]
        sampled = self.sample(variables.params, state, places).mean
        return self.advanced(state, places, taken, sampled)

    def sample(
        self,
        params: Params,
        state: MARState,
        places: Int[Array, "B n"],
        guided_at: Int[Array, "B"] | None = None,
    ) -> ChainEnd:
        """Samples tokens, given those that are known after `state.steps` steps.

        Args:
          params: parameters of the model.
          state: sequences.
          places: tokens to sample.
          guided_at: step whose scale of guidance and number of steps of the chain are
            taken; None for the next step.
        """
        total, last = self.schedule.tokens, self.schedule.steps - 1
        masked = masked_tokens(self.schedule, state.steps)
        known = total - jnp.min(jnp.where(state.done, total, masked))
        # All groups of devices take the same branch.
        stage = -(-group_max(known) * self.stages // total)
        branches = [
            partial(self._conditions, capacity=-(-total * (i + 1) // self.stages))
            for i in range(self.stages)
        ]
        conditions = jax.lax.switch(
            jnp.clip(stage - 1, 0, self.stages - 1), branches, params, state, masked
        )
        at = jnp.minimum(state.steps if guided_at is None else guided_at, last)
        schedules, which = self.chains
        return run_chains(
            self.model,
            params,
            schedules,
            jnp.asarray(which)[at],
            of_places(conditions, repeat_branches(places, self.branches)),
            self.noise(state.keys, places),
            self.schedule.scale(state.sampling.cfg_scale, at),
            state.sampling.temperature,
        )

    def noise(
        self, keys: BatchKeys, places: Int[Array, "B n"]
    ) -> Float[Array, "B n s C"]:
        """Noise of the longest chain of some tokens, see `head_noise`."""
        most = max(schedule.count for schedule in self.chains[0])
        return head_noise(keys, places, most, self.model.config.channels)

    def advanced(
        self,
        state: MARState,
        places: Int[Array, "B n"],
        taken: Bool[Array, "B n"],
        tokens: Float[Array, "B n C"],
        steps: Int[Array, "B"] | int = 1,
        stats: Stats | None = None,
    ) -> MARState:
        """State with new tokens, after a round of some steps.

        Args:
          state: sequences before the round.
          places: places of tokens.
          taken: mask of those that are new.
          tokens: tokens.
          steps: number of steps of each sequence.
          stats: counters, to which the round is still to be added; None for those of
            `state`.
        """
        live = ~state.done
        steps = jnp.minimum(
            state.steps + jnp.where(live, steps, 0), self.schedule.steps
        )
        lengths = self.schedule.tokens - masked_tokens(self.schedule, steps)
        done = (steps == self.schedule.steps) | (
            lengths >= state.stopping.max_new_tokens
        )
        good = jnp.isfinite(tokens).all(-1) | ~taken
        stats = stats or state.stats
        return replace(
            state,
            latents=with_tokens(state.latents, places, taken, tokens),
            steps=steps,
            done=state.done | done,
            stats=replace(
                stats,
                calls=stats.calls + live.astype(jnp.int32),
                rounds=stats.rounds + 1,
            ),
            finite=state.finite & good.all(axis=1),
        )

    def done(self, state: MARState) -> Bool[Array, "B"]:
        """Mask of the sequences that have ended."""
        return state.done

    def result(self, state: MARState) -> Generation:
        """Tokens generated so far, float32 [B, T, C]; -inf where there is none yet."""
        total = self.schedule.tokens
        masked = masked_tokens(self.schedule, state.steps)
        masked = jnp.maximum(masked, total - state.stopping.max_new_tokens)
        rank = jnp.argsort(state.order, axis=1)
        known = rank >= masked[:, None]
        return Generation(
            jnp.where(known[..., None], state.latents, -jnp.inf),
            total - masked,
            state.stats,
            state.finite,
        )

    def _conditions(self, params, state, masked, capacity):
        """Conditions of the head at all tokens."""
        latents, order, masked = (
            repeat_branches(x, self.branches)
            for x in (state.latents, state.order, masked)
        )
        return self.model.token_conditions(
            params, state.condition, latents, order, masked, capacity
        )


def check_settings(sampling: Sampling, stopping: StoppingCriteria) -> None:
    """Raises `ConfigError` for settings that continuous tokens do not have."""
    if known_to_hold((stopping.stop_tokens >= 0).any()):
        raise ConfigError("continuous tokens have no numbers: leave out stop_tokens")
    if known_to_hold((sampling.cfg_tokens < WHOLE).any()):
        raise ConfigError("every step is guided: leave out cfg_interval")
    if known_to_hold((sampling.top_k > 0).any() | (sampling.top_p < 1).any()):
        raise ConfigError(
            "continuous tokens have no vocabulary to filter: leave out top_k and top_p"
        )
