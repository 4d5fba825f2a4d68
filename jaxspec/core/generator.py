"""Generator protocol, and the loop that runs any generator."""

from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from jaxspec.core.mesh_sync import any_group
from jaxspec.core.result import Generation
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.typing import Array, BatchKeys, Bool, Int, Key, PyTree

State = TypeVar("State", bound=Any)


class Generator(Protocol[State]):
    """Four pure functions that generate a batch of sequences.

    A generator is static and hashable. Its state is a dataclass and a pytree. The first
    axis of every array of the state is the batch (or branches x sequences), except for
    scalars, which count for the whole batch, and for arrays within `Shared`. The state
    has the fields `done`, bool [B], and `stats`, see `Stats`. The result of a sequence
    must not change once it is done.

    Variables are a pytree whose class has `is_replicated = True`, so that
    `sharding.over_batch` does not take their first axes for the batch.

    Attributes:
      max_new_tokens: largest number of tokens of a sequence.
    """

    @property
    def max_new_tokens(self) -> int:
        """Largest number of tokens of a sequence, the size of `Generation.tokens`."""
        ...

    def init(
        self,
        variables: Any,
        prompt: PyTree,
        *,
        sampling: Sampling,
        keys: BatchKeys | Key[Array, ""],
        stopping: StoppingCriteria | None = None,
    ) -> State:
        """First state of a batch.

        Args:
          variables: arrays that all sequences share.
          prompt: prompts of the sequences; the first axis of every array is `B`.
          sampling: sampling settings, of all sequences or of each.
          keys: typed keys [B], or one key, from which `batch_keys` derives them.
          stopping: stopping criteria; None for the generator's own.
        """
        ...

    def step(self, variables: Any, state: State) -> State:
        """State after one more call of the model."""
        ...

    def done(self, state: State) -> Bool[Array, "B"]:
        """Mask of the sequences that have ended."""
        ...

    def result(self, state: State) -> Generation:
        """Tokens generated so far, with lengths and counters."""
        ...


def generate(
    generator: Generator[Any],
    variables: Any,
    prompt: PyTree,
    *,
    sampling: Sampling,
    keys: BatchKeys | Key[Array, ""],
    stopping: StoppingCriteria | None = None,
) -> Generation:
    """Generates all sequences of a batch in one program; call it under `jit`.

    Arguments are those of `Generator.init`. A generator with a method `generate` of its
    own, such as `Engine`, is run by that.
    """
    options = {"sampling": sampling, "keys": keys, "stopping": stopping}
    own = getattr(generator, "generate", None)
    if own is not None:
        return own(variables, prompt, **options)
    state = generator.init(variables, prompt, **options)
    return generator.result(advance(generator, variables, state))


def advance(
    generator: Generator[State],
    variables: Any,
    state: State,
    steps: int | Int[Array, ""] | None = None,
) -> State:
    """Runs a generator for a number of steps, or to the end; call it under `jit`.

    Args:
      generator: generator; static.
      variables: arrays that all sequences share.
      state: state of the batch. Donate it.
      steps: largest number of steps; None runs until every sequence is done.

    Returns:
      The state after `steps` steps, or after fewer when every sequence is done.
    """

    def unfinished(carry):
        state, count = carry
        going = any_group(~jnp.all(generator.done(state)))
        return going if steps is None else going & (count < steps)

    def body(carry):
        state, count = carry
        return generator.step(variables, state), count + 1

    return jax.lax.while_loop(unfinished, body, (state, jnp.int32(0)))[0]
