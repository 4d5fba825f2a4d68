"""Any number of prompts through one running program, on one or many devices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.bundle import Bundle
from jaxspec.errors import ConfigError, NonFiniteError
from jaxspec.helpers import LoadedDrafter, bundled_drafter
from jaxspec.pipeline import Settings, bundle_for, make_engine
from jaxspec.rules import verifier_params
from jaxspec.sharding import over_rows
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.state import Engine, StoppingCriteria
from jaxspec.spec.stream import Jobs, begin_stream, run_stream
from jaxspec.spec.tree import Tree
from jaxspec.typing import PyTree

# What the jobs of some numbers are told: `prompts([3, 4]) -> [2, ...]` on the host.
Prompts = Callable[[Sequence[int]], PyTree]


@dataclass(frozen=True)
class Done:
    """A job that has ended.

    Attributes:
      number: of the job; its key is `fold_in(key(seed), number)`.
      tokens: int32 [T].
      calls: target calls that it took, its prefill included.
    """

    number: int
    tokens: np.ndarray
    calls: int


@dataclass(frozen=True)
class Segment:
    """What one call of the program gave.

    Attributes:
      done: jobs that ended, those of this process alone.
      rounds: of the group of devices that took most.
    """

    done: tuple[Done, ...]
    rounds: int


def stream(
    bundle: Bundle,
    settings: Settings,
    tree: Tree | DynamicTree,
    numbers: Sequence[int],
    prompts: Prompts,
    *,
    loaded: LoadedDrafter | None = None,
    rows: int = 8,
    queue: int | None = None,
    wait: int = 1,
) -> Iterator[Segment]:
    """Generates jobs in any number; rows that end take the next one at once.

    On a mesh over several processes every process calls this with the same arguments
    and gets those jobs that ended on its own devices.

    Args:
      bundle: models, and the mesh they lie on.
      settings: how to draw; its `classes`, `texts` and `captions` are not used, its
        `batch` neither.
      tree: shape of the drafts.
      numbers: the jobs.
      prompts: what jobs are told.
      loaded: who drafts; by default the bundle's own drafter.
      rows: sequences side by side, on all devices together.
      queue: jobs handed to the program in one call; by default twice the rows.
      wait: see `spec.stream.run_stream`; more may pay where prompts are long.

    Yields:
      What ended, every time a queue was begun and once more at the end.

    Raises:
      ConfigError: settings, tree and models do not go together, or rows do not divide.
      NonFiniteError: the model gave NaN.
    """
    if loaded is None and tree.size > 1:
        loaded = bundled_drafter(bundle)
    bundle = bundle_for(bundle, loaded)
    mesh, groups = bundle.mesh, 1
    if mesh is not None:
        groups = mesh.shape["data"]
        if rows % groups:
            raise ConfigError(
                f"{rows} rows do not divide among {groups} devices along 'data'; use a "
                "multiple"
            )
    if not numbers:
        return
    engine = make_engine(bundle, settings, tree, loaded)
    size = -(-(queue or 2 * rows) // groups) * groups
    begin, run = _programs(engine, settings, mesh, wait)
    shared = bundle.prior.params, loaded.params if loaded and engine.drafter else None
    for_rule = verifier_params(engine.verifier, bundle)
    state, running = None, None
    for start in range(0, len(numbers), size):
        some = list(numbers[start : start + size])
        given = _dealt(some, size, groups, prompts, mesh)
        if state is None:
            first = _dealt(some[:rows], rows, groups, prompts, mesh)
            state = begin(*shared, *first)
        last = start + size >= len(numbers)
        state, finished = run(*shared, for_rule, state, *given, last)
        if running is not None:  # the device is at work on the next queue meanwhile
            yield _segment(bundle, running)
        running = finished
    yield _segment(bundle, running)


def _programs(engine: Engine, settings: Settings, mesh: Mesh | None, wait: int):
    """`begin_stream` and `run_stream` of jobs given by number and prompt."""

    def jobs(number, prompt) -> Jobs:
        rows = number.shape[0]
        return Jobs(
            number,
            prompt,
            settings.sampling(rows),
            batch_keys(settings.seed, jnp.maximum(number, 0)),
            StoppingCriteria.create(rows, engine.max_new_tokens),
        )

    def begin(params, drafter_params, number, prompt):
        return begin_stream(engine, params, drafter_params, jobs(number, prompt))

    def run(params, drafter_params, verifier_params, stream, number, prompt, drain):
        return run_stream(
            engine,
            params,
            drafter_params,
            stream,
            jobs(number, prompt),
            drain,
            verifier_params,
            wait=wait,
        )

    if mesh is not None:
        begin, run = over_rows(mesh, begin), over_rows(mesh, run)
    return jax.jit(begin), jax.jit(run, donate_argnums=3)


def _dealt(
    numbers: list[int], size: int, groups: int, prompts: Prompts, mesh: Mesh | None
) -> tuple[Any, PyTree]:
    """Jobs in `size` places, the same number for each group; -1 where there is none.

    The last jobs are dealt evenly, so that no group is left with all of them.
    """
    each = size // groups
    places = np.full((groups, each), -1, np.int32)
    places.T.flat[: len(numbers)] = numbers
    number = places.reshape(-1)
    prompt = prompts([i if i >= 0 else numbers[0] for i in number.tolist()])
    if mesh is None:
        return jnp.asarray(number), jax.tree.map(jnp.asarray, prompt)
    place = NamedSharding(mesh, PartitionSpec("data"))

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

    return put(number), jax.tree.map(put, prompt)


def _own_rows(x: jax.Array) -> np.ndarray:
    """Rows that lie on this process's devices; each row belongs to one process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    parts = [s for s in x.addressable_shards if s.replica_id == 0]
    parts.sort(key=lambda s: s.index[0].start or 0)
    empty = np.zeros((0, *x.shape[1:]), x.dtype)
    return np.concatenate([empty, *(np.asarray(s.data) for s in parts)])


def _segment(bundle: Bundle, finished: Any) -> Segment:
    number, result = finished.number, finished.result
    number, tokens, calls, finite = map(
        _own_rows, (number, result.tokens, result.stats.calls, result.finite)
    )
    there = number >= 0
    if not finite[there].all():
        raise NonFiniteError(
            f"the prior of bundle '{bundle.name}' gave NaN or only -inf logits; its "
            "weights are unusable, fetch or train it again"
        )
    done = tuple(
        Done(int(n), t, int(c))
        for n, t, c in zip(number[there], tokens[there], calls[there], strict=True)
    )
    return Segment(done, int(result.stats.rounds))
