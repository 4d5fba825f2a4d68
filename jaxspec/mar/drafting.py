"""Drafting of several steps of unmasking by a small model."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.numbers import whole
from jaxspec.core.precision import full_precision
from jaxspec.core.result import Generation
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.mar.cells import step_cells, with_tokens
from jaxspec.mar.generator import MARGenerator
from jaxspec.mar.head import ChainEnd
from jaxspec.mar.state import MARState, MARVariables
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Key, Params, PyTree


@register_dataclass
@dataclass(frozen=True)
class Drafts:
    """Tokens that were drafted for the next steps of sequences.

    Attributes:
      places: int32 [K, B, n], places of the tokens of each step.
      taken: bool [K, B, n], which of them the step makes known.
      tokens: float32 [K, B, n, C], drafted tokens.
      end: last step of their chains; the first axis of every array is `K`.
      latents: float32 [B, T, C], known and drafted tokens.
    """

    places: Int[Array, "K B n"]
    taken: Bool[Array, "K B n"]
    tokens: Float[Array, "K B n C"]
    end: ChainEnd
    latents: Float[Array, "B T C"]


def check_pair(target: MARGenerator, drafter: MARGenerator, window: int) -> None:
    """Checks that a generator can draft for another one.

    Raises:
      ConfigError: it cannot, or the number of steps is impossible.
    """
    ours, theirs = target.model.config, drafter.model.config
    for name in ("channels", "grid", "classes"):
        mine, its = getattr(ours, name), getattr(theirs, name)
        if mine != its:
            raise ConfigError(
                f"the drafter has {name}={its}, the target {mine}; choose a drafter "
                "that was trained on the same data"
            )
    if (target.schedule, target.cfg) != (drafter.schedule, drafter.cfg):
        raise ConfigError("drafter and target need the same schedule and cfg")
    whole("window", window, 1, target.schedule.steps)


@dataclass(frozen=True)
class DraftedMAR:
    """Base of the generators in which a model drafts steps for another one; static.

    Attributes:
      target: generator of the target.
      drafter: generator of the model that drafts.
      window: number of steps that are drafted in a round.

    Raises:
      ConfigError: the window is impossible, or the models do not fit.
    """

    target: MARGenerator
    drafter: MARGenerator
    window: int = 4

    def __post_init__(self):
        check_pair(self.target, self.drafter, self.window)

    @property
    def max_new_tokens(self) -> int:
        """Number of tokens of an image."""
        return self.target.max_new_tokens

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
        """First state of a batch with conditions of both models, see `Generator.init`.

        Raises:
          ConfigError: prompts, keys and settings do not fit each other, or parameters
            of the drafter are missing.
        """
        options = {"sampling": sampling, "keys": keys, "stopping": stopping}
        state = self.target.init(variables, prompt, **options)
        if variables.drafter is None:
            raise ConfigError(
                "variables have no drafter: MARVariables(params, drafter)"
            )
        own = MARVariables(variables.drafter)
        drafts = self.drafter.init(own, prompt, **options)
        outcomes = self.target.schedule.most_of(self.window) + 1
        counts = jnp.zeros((len(state.steps), outcomes), jnp.int32)
        return replace(
            state,
            drafter_condition=drafts.condition,
            stats=replace(state.stats, accepted=counts),
        )

    def done(self, state: MARState) -> Bool[Array, "B"]:
        """Mask of the sequences that have ended."""
        return state.done

    def result(self, state: MARState) -> Generation:
        """Tokens so far; `stats.accepted` counts rounds by the drafted tokens kept."""
        return self.target.result(state)


def draft_steps(
    drafter: MARGenerator,
    params: Params,
    state: MARState,
    count: int,
    noisy_end: bool = False,
) -> Drafts:
    """Drafts the tokens of the next `count` steps, each given those before.

    Args:
      drafter: generator of the model that drafts.
      params: its parameters.
      state: sequences, of which the known tokens are final.
      count: number of steps, `K`.
      noisy_end: whether noise is added in the last step of a chain, too.
    """
    limit = state.stopping.max_new_tokens
    own = replace(state, condition=state.drafter_condition)

    def one(latents, i):
        now = replace(own, latents=latents, steps=state.steps + i)
        places, taken = step_cells(drafter.schedule, state.order, now.steps, limit)
        taken &= ~state.done[:, None]
        end = drafter.sample(params, now, places)
        tokens = noisy_tokens(drafter, state, places, end) if noisy_end else end.mean
        after = with_tokens(latents, places, taken, tokens)
        return after, (places, taken, tokens, end)

    steps = jnp.arange(count, dtype=jnp.int32)
    latents, drafted = jax.lax.scan(one, state.latents, steps)
    return Drafts(*drafted, latents)


def noisy_tokens(
    generator: MARGenerator, state: MARState, places: Int[Array, "B n"], end: ChainEnd
) -> Float[Array, "B n C"]:
    """Tokens with the noise of the last step of their chains."""
    noise = generator.noise(state.keys, places)[:, :, 1]
    return end.mean + end.deviation * noise


def of_all_steps(x: Array) -> Array:
    """Merges steps and tokens: `[K, B, n, ...]` to `[B, K n, ...]`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def repeat_rows(state: MARState, steps: Int[Array, "J B"], branches: int) -> MARState:
    """Each sequence at several numbers of steps, as rows `[J B]`.

    Args:
      state: sequences.
      steps: numbers of steps of the rows.
      branches: branches of guidance of `state.condition`.
    """
    count = len(steps)

    def tiled(x):
        x = jnp.broadcast_to(x[None], (count, *x.shape))
        return x.reshape(count * x.shape[1], *x.shape[2:])

    def of_branches(x):
        x = x.reshape(branches, len(x) // branches, *x.shape[1:])
        x = jnp.broadcast_to(x[:, None], (branches, count, *x.shape[1:]))
        return x.reshape(branches * count * x.shape[2], *x.shape[3:])

    fields = ("latents", "order", "keys", "sampling", "stopping", "done", "finite")
    repeated = {name: jax.tree.map(tiled, getattr(state, name)) for name in fields}
    return replace(
        state,
        **repeated,
        steps=steps.reshape(-1),
        condition=of_branches(state.condition),
        drafter_condition=None,
    )
