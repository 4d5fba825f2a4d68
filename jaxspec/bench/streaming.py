"""Continuous batching compared with lockstep batches."""

import time
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
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import LoadedDrafter
from jaxspec.pipeline.engine import make_engine
from jaxspec.pipeline.prompts import spread_classes
from jaxspec.pipeline.timing import RATIO_NOTE, Timing, ratio_fields, shown
from jaxspec.sharding.device import device_name
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree


def bench_streaming(
    bundle: Bundle,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None,
    *,
    num: int,
    batch: int,
    waits: list[int],
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
    full_length = engine.max_new_tokens
    rng = np.random.default_rng(seed)
    lengths = {
        "equal": np.full(num, full_length),
        f"{full_length // 4} to {full_length}": rng.integers(
            full_length // 4, full_length + 1, num
        ),
    }
    lockstep = jax.jit(engine.generate)
    begin = jax.jit(partial(idle_batch, engine))
    queues = {w: jax.jit(partial(run_queue, engine, wait=w)) for w in waits}
    rows = []
    with tqdm(
        total=len(lengths) * (1 + len(waits)) * (repeats + 1), desc="runs"
    ) as bar:
        for length_name, budget in lengths.items():
            requests = Requests(
                jnp.arange(num),
                jnp.asarray(classes, jnp.int32),
                settings.sampling(num),
                batch_keys(seed, num),
                StoppingCriteria.create(num, max_new_tokens=budget),
            )

            def take_batch(start, requests=requests):
                """A batch of requests; the last is padded with the last request."""
                indices = jnp.minimum(jnp.arange(start, start + batch), num - 1)
                return jax.tree.map(lambda x: x[indices], requests)

            def run_lockstep():
                results = []
                for start in range(0, num, batch):
                    part = take_batch(start)
                    result = lockstep(
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

            def run_continuous(wait, requests=requests):
                idle = begin(variables, take_batch(0))
                _, finished = queues[wait](variables, idle, requests, True)
                order = np.argsort(np.asarray(finished.ids)[:num])
                result = jax.tree.map(np.asarray, finished.result)
                return (
                    result.tokens[:num][order],
                    result.stats.calls[:num][order],
                    int(result.stats.rounds),
                )

            methods = {"lockstep": run_lockstep}
            methods |= {f"refill, wait {w}": partial(run_continuous, w) for w in waits}
            times: dict[str, list[float]] = {method: [] for method in methods}
            results = {}
            for _ in range(repeats + 1):  # the first run compiles
                for method, run in methods.items():
                    began = time.perf_counter()
                    results[method] = run()
                    times[method].append(time.perf_counter() - began)
                    bar.update()
            timings = {method: Timing.of(times[method][1:]) for method in methods}
            reference = timings["lockstep"]
            for method, (tokens, calls, rounds) in results.items():
                assert np.array_equal(tokens, results["lockstep"][0]), method
                rows.append(
                    {
                        "lengths": length_name,
                        "method": method,
                        "rounds": rounds,
                        "slot_utilization": float(
                            (calls.sum() - num) / (rounds * batch)
                        ),
                        **timings[method].fields(),
                        **ratio_fields(speedup=(reference, timings[method])),
                    }
                )
    return rows


def streaming_markdown(result: dict[str, Any]) -> str:
    """Formats rows of `bench_streaming`."""
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
