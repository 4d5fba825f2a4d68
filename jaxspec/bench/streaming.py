"""Continuous batching compared with lockstep batches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.noise import batch_keys
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.evaluate.tables import markdown_table
from jaxspec.pipeline.bundle import Bundle, load_bundle, token_by_token
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.embedded import CLASSES
from jaxspec.pipeline.engine import make_engine
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import spread_classes
from jaxspec.pipeline.timing import RATIO_NOTE, ratio_fields, shown
from jaxspec.sharding.device import device_name
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree

# Tokens, target calls of each sequence, and rounds of a run.
Run = tuple[np.ndarray, np.ndarray, int]


def measure_streaming(
    *,
    checkpoint: str | None = None,
    num: int = 32,
    batch: int = 8,
    repeats: int = 3,
    seed: int = 0,
    waits: Sequence[int] = (1, 2),
    tree: str | None = None,
) -> dict[str, Any]:
    """Compares continuous batching with lockstep batches, with a bundle's drafter.

    Args:
      checkpoint: Bundle folder; None for the embedded bundle.
      num: Number of requests.
      batch: Number of sequences of a batch.
      repeats: Number of timed runs.
      seed: Seed of images, noise and lengths.
      waits: Numbers of idle sequences before a refill.
      tree: Name of the draft tree; None for the device's default.

    Returns:
      Report with the rows of `bench_streaming`.
    """
    bundle = token_by_token(load_bundle(checkpoint or CLASSES))
    loaded = load_drafter("own", bundle)
    draft_tree = loaded.tree(tree)
    rows = bench_streaming(
        bundle,
        draft_tree,
        loaded,
        num=num,
        batch=batch,
        waits=waits,
        repeats=repeats,
        seed=seed,
    )
    return {
        "checkpoint": bundle.name,
        "num": num,
        "batch": batch,
        "nodes": draft_tree.size,
        "rows": rows,
    }


def bench_streaming(
    bundle: Bundle,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None,
    *,
    num: int,
    batch: int,
    waits: Sequence[int],
    cfg_scale: float = 2.0,
    repeats: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measures each method of batching on jobs of equal and of different lengths.

    Args:
      bundle: Image models.
      tree: Draft tree.
      loaded: Drafter.
      num: Number of requests.
      batch: Number of sequences of a batch.
      waits: Numbers of idle sequences before a refill, see `run_queue`.
      cfg_scale: CFG scale.
      repeats: Number of timed runs, interleaved.
      seed: Seed of images, noise and lengths.

    Returns:
      One row per distribution of lengths and method, with "lengths", "method",
      "rounds", "slot_utilization", fields of its `Timing`, and "speedup" over lockstep
      batches. All methods are checked to generate the same tokens.
    """
    classes = spread_classes(len(bundle.class_names), num)
    settings = GenerationConfig(seed=seed, batch_size=batch, cfg_scale=cfg_scale)
    engine = make_engine(bundle, settings, tree, loaded)
    variables = Variables(bundle.prior.params, loaded.params if loaded else None)
    longest = engine.max_new_tokens
    shortest, rng = longest // 4, np.random.default_rng(seed)
    lengths = {
        "equal": np.full(num, longest),
        f"{shortest} to {longest}": rng.integers(shortest, longest + 1, num),
    }
    lockstep = partial(_run_lockstep, jax.jit(engine.generate))
    begin = jax.jit(partial(idle_batch, engine))
    methods: dict[str, Callable[..., Run]] = {"lockstep": lockstep}
    for wait in waits:
        queue = jax.jit(partial(run_queue, engine, wait=wait))
        methods[f"refill, wait {wait}"] = partial(_run_continuous, begin, queue)
    rows, total = [], len(lengths) * len(methods) * repeats
    with tqdm(total=total, desc="runs") as bar:
        for length_name, budget in lengths.items():
            requests = Requests(
                jnp.arange(num),
                jnp.asarray(classes, jnp.int32),
                settings.sampling(num),
                batch_keys(seed, num),
                StoppingCriteria.create(num, max_new_tokens=budget),
            )
            calls = {
                method: partial(run, variables, requests, batch)
                for method, run in methods.items()
            }
            results = {method: call() for method, call in calls.items()}  # compiles
            timings = time_interleaved(calls, repeats, bar.update, warm_up=False)
            reference = timings["lockstep"]
            for method, (tokens, counts, rounds) in results.items():
                assert np.array_equal(tokens, results["lockstep"][0]), method
                utilization = (counts.sum() - num) / (rounds * batch)
                rows.append(
                    {
                        "lengths": length_name,
                        "method": method,
                        "rounds": rounds,
                        "slot_utilization": float(utilization),
                        **timings[method].fields(),
                        **ratio_fields(speedup=(reference, timings[method])),
                    }
                )
    return rows


def _take_batch(requests: Requests, start: int, batch: int) -> Requests:
    """A batch of requests; the last one is padded with the last request."""
    indices = jnp.minimum(jnp.arange(start, start + batch), len(requests.ids) - 1)
    return jax.tree.map(lambda x: x[indices], requests)


def _run_lockstep(
    program: Callable, variables: Variables, requests: Requests, batch: int
) -> Run:
    """Runs batches one after another, each until its longest request has ended."""
    num, results = len(requests.ids), []
    for start in range(0, num, batch):
        part = _take_batch(requests, start, batch)
        result = program(
            variables,
            part.prompt,
            sampling=part.sampling,
            keys=part.keys,
            stopping=part.stopping,
        )
        results.append(result)
    jax.block_until_ready(results)
    rounds = sum(int(x.stats.rounds) for x in results)
    tokens = np.concatenate([x.tokens for x in results])[:num]
    calls = np.concatenate([x.stats.calls for x in results])[:num]
    return tokens, calls, rounds


def _run_continuous(
    begin: Callable,
    queue: Callable,
    variables: Variables,
    requests: Requests,
    batch: int,
) -> Run:
    """Runs all requests with continuous batching, in their order.

    Args:
      begin: Compiled `idle_batch`.
      queue: Compiled `run_queue`.
      variables: Parameters.
      requests: Requests, all of which are run.
      batch: Number of sequences of a batch.
    """
    idle = begin(variables, _take_batch(requests, 0, batch))
    _, finished = queue(variables, idle, requests, True)
    num = len(requests.ids)
    order = np.argsort(np.asarray(finished.ids)[:num])
    result = jax.tree.map(np.asarray, finished.result)
    tokens, calls = result.tokens[:num][order], result.stats.calls[:num][order]
    return tokens, calls, int(result.stats.rounds)


def streaming_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_streaming`."""
    columns = ["lengths", "method", "rounds", "slot utilization"]
    columns += ["seconds (min, max)", "speedup"]
    rows = [
        [
            row["lengths"],
            row["method"],
            row["rounds"],
            f"{100 * row['slot_utilization']:.0f} %",
            f"{row['seconds']:.1f} ({row['min_seconds']:.1f}, "
            f"{row['max_seconds']:.1f})",
            shown(row, "speedup"),
        ]
        for row in result["rows"]
    ]
    lines = [
        f"# Continuous batching: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {device_name()}, jax {jax.__version__}. {result['num']} jobs, "
        f"batch {result['batch']}, {result['nodes']} nodes. All methods generate the "
        "same tokens. Slot utilization is the fraction of batch slots, over all "
        "rounds, whose job had not ended. Times are medians of interleaved runs. "
        f"{RATIO_NOTE}",
        "",
        markdown_table(columns, rows),
    ]
    return "\n".join(lines)
