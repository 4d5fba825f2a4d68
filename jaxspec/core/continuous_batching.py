"""Continuous batching: a finished sequence is replaced by the next request.

Works with every `Generator`. All shapes are static; a queue of requests runs as one
program.
"""

from dataclasses import dataclass, replace
from typing import Any, Generic

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.generator import Generator, State
from jaxspec.core.mesh_sync import any_group
from jaxspec.core.result import Generation
from jaxspec.core.sampling import Sampling
from jaxspec.core.shared import Shared
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.typing import Array, BatchKeys, Bool, Int, PyTree


@register_dataclass
@dataclass(frozen=True)
class Requests:
    """Requests: prompts with their settings.

    Attributes:
      ids: int32 [Q], id of each request, 0 or more; -1 for an empty entry.
      prompt: prompts, `Q` along the first axis of every array.
      sampling: sampling settings of each request.
      keys: typed keys [Q].
      stopping: stopping criteria of each request.
    """

    ids: Int[Array, "Q"]
    prompt: PyTree
    sampling: Sampling
    keys: BatchKeys
    stopping: StoppingCriteria


@register_dataclass
@dataclass(frozen=True)
class Batch(Generic[State]):
    """Sequences that are being generated.

    Attributes:
      state: state of the generator; an idle sequence is done.
      ids: int32 [B], id of the request of each sequence; -1 for an idle sequence.
    """

    state: State
    ids: Int[Array, "B"]


@register_dataclass
@dataclass(frozen=True)
class Finished:
    """Requests that ended during a call of `run_queue`.

    Attributes:
      ids: int32 [M], ids of the requests in the order in which they ended, then -1;
        `M = Q + B`.
      result: results of the requests; `stats.rounds` counts the rounds of this call.
    """

    ids: Int[Array, "M"]
    result: Generation


def idle_batch(
    generator: Generator[State], variables: Any, requests: Requests
) -> Batch[State]:
    """Batch of idle sequences.

    Args:
      generator: generator; static.
      variables: arrays that all sequences share.
      requests: `B` requests, of which only the shapes of the prompts matter.
    """
    state = _first_state(generator, variables, requests)
    state = replace(state, done=jnp.ones_like(state.done))
    return Batch(state, jnp.full_like(requests.ids, -1))


def run_queue(
    generator: Generator[State],
    variables: Any,
    batch: Batch[State],
    queue: Requests,
    drain: Bool[Array, ""] | bool,
    *,
    wait: int = 1,
) -> tuple[Batch[State], Finished]:
    """Generates until every request of a queue has started; call it under `jit`.

    The tokens of a request do not depend on the batch that it runs in.

    Args:
      generator: generator; static.
      variables: arrays that all sequences share.
      batch: sequences, some of which may be unfinished. Donate it.
      queue: `Q` requests, empty entries at the end.
      drain: whether to continue until every sequence has ended.
      wait: number of idle sequences at which prompts are read, since one prefill reads
        the prompts of all of them. Prompts are read earlier if fewer requests remain,
        or if all sequences are idle.

    Returns:
      The batch, and up to `Q + B` requests that ended.
    """
    size, capacity = batch.ids.shape[0], queue.ids.shape[0]
    count = jnp.sum(queue.ids >= 0, dtype=jnp.int32)
    rounds = batch.state.stats.rounds
    finished = _no_results(generator, batch.state, capacity + size)

    def unfinished(carry) -> Array:
        batch, _, started, _ = carry
        busy = jnp.any(batch.ids >= 0)
        return any_group((started < count) | (jnp.asarray(drain) & busy))

    def step(carry):
        batch, finished, started, ended = carry
        idle = jnp.sum(batch.ids < 0)
        enough = (idle >= jnp.minimum(wait, count - started)) | (idle == size)
        batch, started = jax.lax.cond(
            any_group((started < count) & enough),
            refill,
            lambda batch, started: (batch, started),
            batch,
            started,
        )
        state = generator.step(variables, batch.state)
        ends = generator.done(state) & (batch.ids >= 0)
        index = ended + jnp.cumsum(ends) - 1
        index = jnp.where(ends, index, capacity + size)  # beyond the end: dropped
        finished = jax.tree.map(
            lambda x, new: x.at[index].set(new, mode="drop") if x.ndim else x,
            finished,
            Finished(batch.ids, generator.result(state)),
        )
        batch = Batch(state, jnp.where(ends, -1, batch.ids))
        return batch, finished, started, ended + jnp.sum(ends, dtype=jnp.int32)

    def refill(batch, started):
        idle = batch.ids < 0
        index = started + jnp.cumsum(idle, dtype=jnp.int32) - 1
        takes_new = idle & (index < count)
        index = jnp.clip(index, 0, capacity - 1)
        requests = jax.tree.map(lambda x: x[index], queue)
        new = Batch(_first_state(generator, variables, requests), requests.ids)
        merged = _merge(takes_new, new, batch)
        return merged, started + jnp.sum(takes_new, dtype=jnp.int32)

    zero = jnp.zeros((), jnp.int32)
    carry = batch, finished, zero, zero
    batch, finished, _, _ = jax.lax.while_loop(unfinished, step, carry)
    stats = finished.result.stats
    stats = replace(stats, rounds=batch.state.stats.rounds - rounds)
    return batch, replace(finished, result=replace(finished.result, stats=stats))


def _first_state(
    generator: Generator[State], variables: Any, requests: Requests
) -> State:
    return generator.init(
        variables,
        requests.prompt,
        sampling=requests.sampling,
        keys=requests.keys,
        stopping=requests.stopping,
    )


def _no_results(generator: Generator[State], state: State, count: int) -> Finished:
    """Zeros for the results of `count` requests."""
    shapes = jax.eval_shape(generator.result, state)
    zeros = jax.tree.map(
        lambda x: jnp.zeros((count, *x.shape[1:]) if x.ndim else (), x.dtype), shapes
    )
    return Finished(jnp.full(count, -1, jnp.int32), zeros)


def _merge(takes_new: Bool[Array, "B"], new: Batch, old: Batch) -> Batch:
    """Arrays of the new batch where a sequence takes a new request, else of the old.

    Scalars and `Shared` arrays are those of the old batch.
    """
    size = takes_new.shape[0]

    def select(new, old):
        if isinstance(old, Shared) or not old.ndim:
            return old
        mask = jnp.tile(takes_new, old.shape[0] // size)  # branches x sequences
        mask = mask.reshape(-1, *(1,) * (old.ndim - 1))
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            # Selecting keys is no use of them, for JAX's check of key reuse.
            new, old = jax.random.clone(new), jax.random.clone(old)
            return jax.random.clone(jnp.where(mask, new, old))
        return jnp.where(mask, new, old)

    is_shared = lambda x: isinstance(x, Shared)  # noqa: E731
    return jax.tree.map(select, new, old, is_leaf=is_shared)
