"""Coupled steps: a small model drafts steps of unmasking, a large one verifies them."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxspec.config.checks import number
from jaxspec.core.precision import full_precision
from jaxspec.mar.cells import of_places, step_cells
from jaxspec.mar.drafting import (
    DraftedMAR,
    draft_steps,
    of_all_steps,
    repeat_rows,
)
from jaxspec.mar.state import MARState, MARVariables


@dataclass(frozen=True)
class CoupledMAR(DraftedMAR):
    """Implements `Generator`: drafted steps of unmasking, verified in one call.

    The order of the tokens and the noise of each depend on the key of the sequence
    alone, so that what the target would sample at a drafted token is a function of the
    tokens before it. A round drafts the next steps with the drafter, and samples every
    one of them with the target, given the drafts before it, in one call with a row for
    each step. Steps are kept as long as all of their tokens are within a distance of
    the target's own; at the first other one the target's own tokens are taken, and
    later drafts are dropped. This is ours.

    Every token is then within `radius` of what the target samples there, given the
    tokens that were known before. With `radius = 0` the tokens are those of the target
    alone (float32; up to rounding, which depends on the batch).

    Attributes:
      target: generator of the target.
      drafter: generator of the model that drafts; the number of steps of its chains may
        be another one.
      window: number of steps that are drafted in a round.
      radius: distance up to which a drafted token is kept, as root mean square over
        channels.

    Raises:
      ConfigError: window or radius are impossible, or the models do not fit.
    """

    radius: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        number(self, "of at least 0", lambda x: x >= 0, "radius")

    @full_precision
    def step(self, variables: MARVariables, state: MARState) -> MARState:
        """State after one more call of the target."""
        schedule, window = self.target.schedule, self.window
        drafts = draft_steps(self.drafter, variables.drafter, state, window)
        # One more step than was drafted: given all drafts, the target samples it, too.
        after = jnp.arange(window + 1, dtype=jnp.int32)[:, None]
        steps = jnp.minimum(state.steps[None] + after, schedule.steps)
        rows = replace(state, latents=drafts.latents)
        rows = repeat_rows(rows, steps, self.target.branches)
        limit = rows.stopping.max_new_tokens
        places, taken = step_cells(schedule, rows.order, rows.steps, limit)
        taken &= ~rows.done[:, None]
        own = self.target.sample(variables.params, rows, places).mean
        drafted = of_places(rows.latents, places)
        distance = jnp.sqrt(jnp.mean((own - drafted) ** 2, axis=-1))
        shape = window + 1, len(state.steps), -1
        near = ((distance <= self.radius) | ~taken).reshape(shape).all(axis=-1)
        # The last step of a round, and of a sequence, is the target's own.
        final = (steps >= schedule.steps - 1) | (after == window)
        kept = jnp.argmin(near & ~final, axis=0).astype(jnp.int32)
        is_kept = (after < kept[None]).reshape(-1, 1)
        tokens = jnp.where(is_kept[..., None], drafted, own)
        taken &= (after <= kept[None]).reshape(-1, 1)

        def of_sequences(x):
            return of_all_steps(x.reshape(window + 1, len(state.steps), *x.shape[1:]))

        counted = drafts.taken & (after[:window] < kept[None])[..., None]
        found = jnp.sum(counted, axis=(0, 2), dtype=jnp.int32)
        stats = replace(
            state.stats,
            proposed=state.stats.proposed
            + jnp.sum(drafts.taken, axis=(0, 2), dtype=jnp.int32),
            accepted=state.stats.accepted.at[jnp.arange(len(kept)), found].add(
                (~state.done).astype(jnp.int32)
            ),
        )
        return self.target.advanced(
            state,
            of_sequences(places),
            of_sequences(taken),
            of_sequences(tokens),
            kept + 1,
            stats,
        )
