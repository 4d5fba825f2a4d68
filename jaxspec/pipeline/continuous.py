"""Continuous batching over any number of requests, on one or many devices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.generator import Generator
from jaxspec.core.noise import batch_keys
from jaxspec.errors import ConfigError
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.generation import check_finite
from jaxspec.pipeline.generators import make_generator
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.sharding import over_batch
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import PyTree

# Prompts of some requests, on the host: `prompts([3, 4]) -> [2, ...]`.
PromptsOf = Callable[[Sequence[int]], PyTree]


@dataclass(frozen=True)
class FinishedRequest:
    """Result of one request.

    Attributes:
      id: number of the request; its key is `fold_in(key(seed), id)`.
      tokens: int32 [T].
      calls: number of target calls, the prefill included.
      proposed: number of drafted tokens that were verified.
      first_accepted: number of rounds in which the first drafted token was accepted.
    """

    id: int
    tokens: np.ndarray
    calls: int
    proposed: int
    first_accepted: int


@dataclass(frozen=True)
class Segment:
    """Results of one call of the program.

    Attributes:
      finished: requests that ended on the devices of this process.
      rounds: rounds of the group of devices that took most.
    """

    finished: tuple[FinishedRequest, ...]
    rounds: int


def generate_continuously(
    bundle: Bundle,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    ids: Sequence[int],
    prompts: PromptsOf,
    *,
    loaded: LoadedDrafter | None = None,
    queue: int | None = None,
    wait: int = 1,
) -> Iterator[Segment]:
    """Generates requests; a sequence that ends makes room for the next one at once.

    On a mesh over several processes, every process calls this with the same arguments
    and gets the requests that ended on its own devices.

    Args:
      bundle: models, and the mesh of their parameters.
      config: generation settings; `batch_size` is the number of sequences on all
        devices together.
      tree: shape of the drafts.
      ids: numbers of the requests.
      prompts: function that returns the prompts of requests.
      loaded: drafter; None for the bundle's own.
      queue: number of requests of one call of the program; by default twice the batch
        size.
      wait: number of idle sequences before prompts are read, see `run_queue`. More may
        pay where prompts are long.

    Yields:
      Finished requests, for each queue once it has been begun, and at the end.

    Raises:
      ConfigError: settings, tree and models do not go together, or the batch size does
        not divide.
      NonFiniteError: the model gave NaN.
    """
    if loaded is None and tree.size > 1:
        loaded = load_drafter("own", bundle)
    bundle = bundle_for(bundle, loaded)
    mesh, size = bundle.mesh, config.batch_size
    groups = mesh.shape["data"] if mesh is not None else 1
    if size % groups:
        raise ConfigError(
            f"{size} sequences do not divide among {groups} devices along 'data'; use "
            "a multiple"
        )
    if not ids:
        return
    generator, variables = make_generator(bundle, config, tree, loaded)
    length = -(-(queue or 2 * size) // groups) * groups
    begin, run = _programs(generator, config, mesh, wait)
    batch, running = None, None
    for start in range(0, len(ids), length):
        part = list(ids[start : start + length])
        requests = _deal(part, length, groups, prompts, mesh)
        if batch is None:
            first = _deal(part[:size], size, groups, prompts, mesh)
            batch = begin(variables, *first)
        is_last = start + length >= len(ids)
        batch, finished = run(variables, batch, *requests, is_last)
        if running is not None:  # meanwhile the device works on the next queue
            yield _segment(bundle, running)
        running = finished
    yield _segment(bundle, running)


def _programs(
    generator: Generator[Any], config: GenerationConfig, mesh: Mesh | None, wait: int
):
    """`idle_batch` and `run_queue` of requests that are given by number and prompt."""

    def requests(ids, prompt) -> Requests:
        count = ids.shape[0]
        return Requests(
            ids,
            prompt,
            config.sampling(count),
            batch_keys(config.seed, jnp.maximum(ids, 0)),
            config.stopping(generator.max_new_tokens).for_batch(count),
        )

    def begin(variables, ids, prompt):
        return idle_batch(generator, variables, requests(ids, prompt))

    def run(variables, batch, ids, prompt, drain):
        queue = requests(ids, prompt)
        return run_queue(generator, variables, batch, queue, drain, wait=wait)

    if mesh is not None:
        begin, run = over_batch(mesh, begin), over_batch(mesh, run)
    return jax.jit(begin), jax.jit(run, donate_argnums=1)


def _deal(
    ids: list[int], size: int, groups: int, prompts: PromptsOf, mesh: Mesh | None
) -> tuple[Any, PyTree]:
    """Numbers and prompts of `size` requests, equally many for each group; -1 for none.

    The last requests are dealt evenly, so that no group gets all of them.
    """
    dealt = np.full((groups, size // groups), -1, np.int32)
    dealt.T.flat[: len(ids)] = ids
    numbers = dealt.reshape(-1)
    prompt = prompts([i if i >= 0 else ids[0] for i in numbers.tolist()])
    if mesh is None:
        return jnp.asarray(numbers), jax.tree.map(jnp.asarray, prompt)
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return put(numbers), jax.tree.map(put, prompt)


def _local_rows(x: jax.Array) -> np.ndarray:
    """Entries on the devices of this process; each belongs to one process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = [s for s in x.addressable_shards if s.replica_id == 0]
    shards.sort(key=lambda s: s.index[0].start or 0)
    empty = np.zeros((0, *x.shape[1:]), x.dtype)
    return np.concatenate([empty, *(np.asarray(s.data) for s in shards)])


def _segment(bundle: Bundle, finished: Any) -> Segment:
    result, stats = finished.result, finished.result.stats
    ids = _local_rows(finished.ids)
    real = ids >= 0
    check_finite(bundle, _local_rows(result.finite)[real])
    fields = result.tokens, stats.calls, stats.proposed, stats.hits[:, 0, 0]
    columns = [_local_rows(x)[real] for x in fields]
    return Segment(
        tuple(
            FinishedRequest(int(i), tokens, int(calls), int(proposed), int(first))
            for i, tokens, calls, proposed, first in zip(
                ids[real], *columns, strict=True
            )
        ),
        int(stats.rounds),
    )
