"""Many prompts through a few rows: a row that ends takes the next prompt at once.

Also known as continuous batching; shapes stay static, all of it is one program.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.spec.draft import Shared
from jaxspec.spec.loop import init_state, result_of, spec_step
from jaxspec.spec.sampling import Sampling
from jaxspec.spec.state import Engine, Generation, SpecState, StoppingCriteria
from jaxspec.spec.together import any_group
from jaxspec.typing import Array, BatchKeys, Bool, Int, Params, PyTree


@register_dataclass
@dataclass(frozen=True)
class Jobs:
    """What there is to generate, or what rows are at work on.

    Attributes:
      number: int32 [Q], of each job, 0 or more; -1 for none.
      prompt: what the target's `prefill` takes, `Q` rows.
      sampling: settings of each.
      keys: one typed key each.
      stopping: when each ends.
    """

    number: Int[Array, "Q"]
    prompt: PyTree
    sampling: Sampling
    keys: BatchKeys
    stopping: StoppingCriteria


@register_dataclass
@dataclass(frozen=True)
class Stream:
    """Rows at work.

    Attributes:
      state: of all rows; a row without a job is done.
      jobs: of the rows, `B` of them.
    """

    state: SpecState
    jobs: Jobs


@register_dataclass
@dataclass(frozen=True)
class Finished:
    """What ended during a call.

    Attributes:
      number: int32 [M], the jobs, in the order in which they ended; -1 behind them.
      result: of each, as `generate` returns it; its `stats.rounds` counts those of
        this call.
    """

    number: Int[Array, "M"]
    result: Generation


def begin_stream(
    engine: Engine, params: Params, drafter_params: Params, jobs: Jobs
) -> Stream:
    """As many idle rows as `jobs` has; its prompts are only looked at for shapes."""
    state = _begun(engine, params, drafter_params, jobs)
    state = replace(state, done=jnp.ones_like(state.done))
    return Stream(state, replace(_copied(jobs), number=jnp.full_like(jobs.number, -1)))


def run_stream(
    engine: Engine,
    params: Params,
    drafter_params: Params,
    stream: Stream,
    queue: Jobs,
    drain: Bool[Array, ""] | bool,
    verifier_params: Params = None,
    *,
    wait: int = 1,
) -> tuple[Stream, Finished]:
    """Works until every job of `queue` has been begun; call it under `jit`.

    A job's tokens are those that `generate` gives it in any batch. Donate `stream`.

    Args:
      engine: static pieces.
      params: the target's parameters.
      drafter_params: the drafter's; None without one.
      stream: rows, some of which may be at work already.
      queue: `Q` jobs; those whose number is -1, at its end, are none.
      drain: work on until every row has ended.
      verifier_params: arrays that the verifier needs, if any.
      wait: rows that must be idle before new prompts are read: a pass over the prompts
        is made for all rows at once. With fewer jobs left, or no row at work, it does
        not wait.

    Returns:
      The stream, and the up to `Q + B` jobs that ended.
    """
    rows, most = stream.jobs.number.shape[0], queue.number.shape[0]
    count = jnp.sum(queue.number >= 0, dtype=jnp.int32)
    before = stream.state.stats.rounds
    shapes = jax.eval_shape(partial(result_of, engine), stream.state)
    nothing = jax.tree.map(
        lambda x: jnp.zeros((most + rows, *x.shape[1:]) if x.ndim else (), x.dtype),
        shapes,
    )
    done = Finished(jnp.full(most + rows, -1, jnp.int32), nothing)

    def running(carry) -> Array:
        stream, _, taken, _ = carry
        busy = jnp.any(stream.jobs.number >= 0)
        return any_group((taken < count) | (jnp.asarray(drain) & busy))

    def work(carry):
        stream, done, taken, ended = carry
        idle = jnp.sum(stream.jobs.number < 0)
        enough = (idle >= jnp.minimum(wait, count - taken)) | (idle == rows)
        now = any_group((taken < count) & enough)
        stream, taken = jax.lax.cond(now, refill, lambda s, t: (s, t), stream, taken)
        jobs = stream.jobs
        state = spec_step(
            engine,
            params,
            drafter_params,
            jobs.prompt,
            jobs.sampling,
            stream.state,
            verifier_params,
        )
        over = state.done & (jobs.number >= 0)
        place = ended + jnp.cumsum(over) - 1
        place = jnp.where(over, place, most + rows)  # beyond the end: dropped
        done = jax.tree.map(
            lambda all, own: all.at[place].set(own, mode="drop") if all.ndim else all,
            done,
            Finished(jobs.number, result_of(engine, state)),
        )
        jobs = replace(jobs, number=jnp.where(over, -1, jobs.number))
        ended = ended + jnp.sum(over, dtype=jnp.int32)
        return Stream(state, jobs), done, taken, ended

    def refill(stream, taken):
        idle = stream.jobs.number < 0
        wanted = taken + jnp.cumsum(idle, dtype=jnp.int32) - 1
        gets = idle & (wanted < count)
        wanted = jnp.clip(wanted, 0, most - 1)
        jobs = jax.tree.map(lambda x: x[wanted], queue)
        fresh = _begun(engine, params, drafter_params, jobs)
        merged = _merged(gets, Stream(fresh, jobs), stream)
        return merged, taken + jnp.sum(gets, dtype=jnp.int32)

    zero = jnp.zeros((), jnp.int32)
    stream, done, _, _ = jax.lax.while_loop(running, work, (stream, done, zero, zero))
    rounds = stream.state.stats.rounds - before
    stats = replace(done.result.stats, rounds=rounds)
    return stream, replace(done, result=replace(done.result, stats=stats))


def _begun(
    engine: Engine, params: Params, drafter_params: Params, jobs: Jobs
) -> SpecState:
    """Every job after its first token."""
    given = jobs.prompt, jobs.sampling, jobs.keys, jobs.stopping
    return init_state(engine, params, drafter_params, *given)


def _merged(gets: Bool[Array, "B"], fresh: Stream, old: Stream) -> Stream:
    """Rows that get something new, and rows that go on; counters of all stay."""
    rows = gets.shape[0]

    def pick(new, kept):
        if isinstance(kept, Shared) or not kept.ndim:
            return kept
        own = jnp.tile(gets, kept.shape[0] // rows)  # streams x rows, stream-major
        own = own.reshape(-1, *(1,) * (kept.ndim - 1))
        if jnp.issubdtype(kept.dtype, jax.dtypes.prng_key):  # chosen, not drawn from
            new, kept = jax.random.clone(new), jax.random.clone(kept)
            return jax.random.clone(jnp.where(own, new, kept))
        return jnp.where(own, new, kept)

    is_shared = lambda x: isinstance(x, Shared)  # noqa: E731
    return jax.tree.map(pick, fresh, old, is_leaf=is_shared)


def _copied(tree: Any) -> Any:
    """The stream may be donated, what the caller holds may not."""
    return jax.tree.map(jnp.copy, tree)
