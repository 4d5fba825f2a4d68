"""Continuous batching: a sequence that ends makes room for the next request at once.

Works with every `Generator`. All shapes are static; a queue of requests is one program.
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
    """Prompts with their settings.

    Attributes:
      ids: int32 [Q], number of each request, 0 or more; -1 for none.
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
      ids: int32 [B], request of each sequence; -1 for an idle one.
    """

    state: State
    ids: Int[Array, "B"]


@register_dataclass
@dataclass(frozen=True)
class Finished:
    """Requests that ended during a call of `run_queue`.

    Attributes:
      ids: int32 [M], numbers of the requests in the order in which they ended; -1
        behind them.
      result: their results; `stats.rounds` counts the rounds of this call.
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
      requests: as many requests as the batch has sequences, `Q = B`. Only the shapes
        of their prompts matter.
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
    """Generates until every request of a queue has been begun; call it under `jit`.

    The tokens of a request are those that it gets in any other batch.

    Args:
      generator: generator; static.
      variables: arrays that all sequences share.
      batch: sequences, some of which may be unfinished. Donate it.
      queue: `Q` requests; those without a number are at its end.
      drain: whether to go on until every sequence has ended.
      wait: number of idle sequences before new prompts are read, since one pass reads
        the prompts of all of them. Ignored when fewer requests remain, or all sequences
        are idle.

    Returns:
      The batch, and the up to `Q + B` requests that ended.
    """
    size, most = batch.ids.shape[0], queue.ids.shape[0]
    count = jnp.sum(queue.ids >= 0, dtype=jnp.int32)
    rounds = batch.state.stats.rounds
    finished = _no_results(generator, batch.state, most + size)

    def unfinished(carry) -> Array:
        batch, _, begun, _ = carry
        busy = jnp.any(batch.ids >= 0)
        return any_group((begun < count) | (jnp.asarray(drain) & busy))

    def step(carry):
        batch, finished, begun, ended = carry
        idle = jnp.sum(batch.ids < 0)
        enough = (idle >= jnp.minimum(wait, count - begun)) | (idle == size)
        batch, begun = jax.lax.cond(
            any_group((begun < count) & enough),
            refill,
            lambda batch, begun: (batch, begun),
            batch,
            begun,
        )
        state = generator.step(variables, batch.state)
        over = generator.done(state) & (batch.ids >= 0)
        index = ended + jnp.cumsum(over) - 1
        index = jnp.where(over, index, most + size)  # beyond the end: dropped
        finished = jax.tree.map(
            lambda x, new: x.at[index].set(new, mode="drop") if x.ndim else x,
            finished,
            Finished(batch.ids, generator.result(state)),
        )
        batch = Batch(state, jnp.where(over, -1, batch.ids))
        return batch, finished, begun, ended + jnp.sum(over, dtype=jnp.int32)

    def refill(batch, begun):
        idle = batch.ids < 0
        index = begun + jnp.cumsum(idle, dtype=jnp.int32) - 1
        takes = idle & (index < count)
        index = jnp.clip(index, 0, most - 1)
        requests = jax.tree.map(lambda x: x[index], queue)
        fresh = Batch(_first_state(generator, variables, requests), requests.ids)
        merged = _merge(takes, fresh, batch)
        return merged, begun + jnp.sum(takes, dtype=jnp.int32)

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
    """Space for the results of `count` requests."""
    shapes = jax.eval_shape(generator.result, state)
    zeros = jax.tree.map(
        lambda x: jnp.zeros((count, *x.shape[1:]) if x.ndim else (), x.dtype), shapes
    )
    return Finished(jnp.full(count, -1, jnp.int32), zeros)


def _merge(takes: Bool[Array, "B"], fresh: Batch, old: Batch) -> Batch:
    """Batch with the fresh arrays where a sequence takes a new request.

    Scalars and `Shared` arrays are those of the old batch.
    """
    size = takes.shape[0]

    def pick(new, kept):
        if isinstance(kept, Shared) or not kept.ndim:
            return kept
        mask = jnp.tile(takes, kept.shape[0] // size)  # branches x sequences
        mask = mask.reshape(-1, *(1,) * (kept.ndim - 1))
        if jnp.issubdtype(kept.dtype, jax.dtypes.prng_key):  # chosen, not drawn from
            new, kept = jax.random.clone(new), jax.random.clone(kept)
            return jax.random.clone(jnp.where(mask, new, kept))
        return jnp.where(mask, new, kept)

    is_shared = lambda x: isinstance(x, Shared)  # noqa: E731
    return jax.tree.map(pick, fresh, old, is_leaf=is_shared)
