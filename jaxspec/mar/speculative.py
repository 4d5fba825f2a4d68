"""Continuous speculative decoding: drafted tokens, accepted by ratios of densities."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.config.checks import number
from jaxspec.core.arguments import known_to_hold
from jaxspec.core.precision import full_precision
from jaxspec.errors import ConfigError
from jaxspec.mar.density import DensityTest, accept_or_redraw
from jaxspec.mar.drafting import (
    DraftedMAR,
    draft_steps,
    noisy_tokens,
    of_all_steps,
)
from jaxspec.mar.state import MARState, MARVariables


@dataclass(frozen=True)
class SpeculativeMAR(DraftedMAR):
    """Implements `Generator`: continuous speculative decoding (CSpD, arXiv 2411.11925).

    A round drafts the tokens of some steps with the drafter; the target then predicts
    all of them in one call in which all are masked, and each is accepted or redrawn on
    its own, see `DensityTest`. With its default the tokens have the distribution of the
    target alone with as many tokens in one step as a round has, and with noise in the
    last step of a chain, too, which MAR leaves out; up to the bound on tries.

    Attributes:
      target: generator of the target.
      drafter: generator of the model that drafts.
      window: number of steps that are drafted in a round.
      test: acceptance of a drafted token.
      prefill: fraction of the steps at the beginning that the target makes alone.

    Raises:
      ConfigError: a setting is impossible, or the models do not fit.
    """

    window: int = 8
    test: DensityTest = DensityTest()
    prefill: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if (
            self.target.chains[0] != self.drafter.chains[0]
            or (self.target.chains[1] != self.drafter.chains[1]).any()
        ):
            raise ConfigError("drafter and target need chains of the same steps")
        if self.test.product != "none" and len(self.target.chains[0]) > 1:
            raise ConfigError(
                "a product is over chains of the same steps, and an annealed chain of "
                "the target has those of the window's last step; use product='none'"
            )
        if self.target.head.solver != "ancestral":
            raise ConfigError(
                f"a chain of solver={self.target.head.solver!r} has no densities; "
                "choose 'ancestral'"
            )
        number(self, "from 0 to 1", lambda x: 0 <= x <= 1, "prefill")

    def init(self, variables, prompt, *, sampling, **options) -> MARState:
        """First state of a batch, see `Generator.init`.

        Raises:
          ConfigError: as for `DraftedMAR.init`, or the temperature is 0.
        """
        if known_to_hold((sampling.temperature == 0).any()):
            raise ConfigError("a chain of temperature=0 has no densities; raise it")
        return super().init(variables, prompt, sampling=sampling, **options)

    @full_precision
    def step(self, variables: MARVariables, state: MARState) -> MARState:
        """State after one more call of the target."""
        schedule, window = self.target.schedule, self.window
        alone = state.steps < math.ceil(self.prefill * schedule.steps)
        drafts = draft_steps(
            self.drafter, variables.drafter, state, window, self.test.noisy_end
        )
        places, taken = of_all_steps(drafts.places), of_all_steps(drafts.taken)
        # A call of the target alone is one step.
        first = jnp.arange(places.shape[1]) < drafts.places.shape[2]
        end = jnp.minimum(state.steps + window, schedule.steps) - 1
        own = self.target.sample(
            variables.params, state, places, jnp.where(alone, state.steps, end)
        )
        tokens, accepted = accept_or_redraw(
            self.test,
            state.keys,
            places,
            of_all_steps(drafts.tokens),
            jax.tree.map(of_all_steps, drafts.end),
            own,
            taken & ~alone[:, None],
        )
        plain = own.mean
        if self.test.noisy_end:
            plain = noisy_tokens(self.target, state, places, own)
        tokens = jnp.where(alone[:, None, None], plain, tokens)
        taken &= ~alone[:, None] | first[None]
        verified = taken & ~alone[:, None]
        kept = jnp.sum(accepted & verified, axis=1, dtype=jnp.int32)
        counted = (~state.done & ~alone).astype(jnp.int32)
        stats = replace(
            state.stats,
            proposed=state.stats.proposed + jnp.sum(verified, axis=1, dtype=jnp.int32),
            accepted=state.stats.accepted.at[jnp.arange(len(kept)), kept].add(counted),
        )
        steps = jnp.where(alone, 1, window)
        return self.target.advanced(state, places, taken, tokens, steps, stats)
