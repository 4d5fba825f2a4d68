"""Rows that take the next prompt when they end, against batches that wait for all."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.bundle import Bundle
from jaxspec.device import device_name
from jaxspec.helpers import LoadedDrafter
from jaxspec.pipeline import Settings, make_engine, spread_classes
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.loop import generate
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.state import StoppingCriteria
from jaxspec.spec.stream import Jobs, begin_stream, run_stream
from jaxspec.spec.tree import Tree
from jaxspec.timing import RATIO_NOTE, Timing, ratio_fields, shown


def bench_streaming(
    bundle: Bundle,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None,
    *,
    num: int,
    rows: int,
    waits: list[int],
    cfg_scale: float = 2.0,
    repeats: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row for each kind of lengths and each method of batching.

    Args:
      bundle: of images.
      tree: shape of the drafts.
      loaded: who drafts.
      num: jobs.
      rows: sequences side by side.
      waits: see `run_stream`.
      cfg_scale: scale.
      repeats: timed runs, the methods in turn.
      seed: of images, noise and lengths.

    Returns:
      Dicts with "lengths", "method", "rounds", "slot_utilization", fields of its `Timing`, and
      "speedup" against lockstep batches; the tokens were compared.
    """
    classes = spread_classes(len(bundle.class_names), num)
    settings = Settings(classes, seed=seed, batch=rows, cfg_scale=cfg_scale)
    engine = make_engine(bundle, settings, tree, loaded)
    shared = bundle.prior.params, loaded.params if loaded else None
    whole = engine.max_new_tokens
    rng = np.random.default_rng(seed)
    lengths = {
        "all alike": np.full(num, whole),
        f"{whole // 4} to {whole}": rng.integers(whole // 4, whole + 1, num),
    }
    lockstep = jax.jit(partial(generate, engine))
    begin = jax.jit(partial(begin_stream, engine))
    streams = {w: jax.jit(partial(run_stream, engine, wait=w)) for w in waits}
    found = []
    with tqdm(
        total=len(lengths) * (1 + len(waits)) * (repeats + 1), desc="runs"
    ) as bar:
        for words, budget in lengths.items():
            jobs = Jobs(
                jnp.arange(num),
                jnp.asarray(classes, jnp.int32),
                settings.sampling(num),
                batch_keys(seed, num),
                StoppingCriteria.create(num, budget),
            )

            def some(start, jobs=jobs):
                end = jnp.minimum(jnp.arange(start, start + rows), num - 1)
                return jax.tree.map(lambda x: x[end], jobs)

            def in_batches():
                parts = []
                for start in range(0, num, rows):
                    part = some(start)
                    given = part.prompt, part.sampling, part.keys, part.stopping
                    parts.append(lockstep(*shared, *given))
                jax.block_until_ready(parts)
                rounds = sum(int(part.stats.rounds) for part in parts)
                tokens = np.concatenate([part.tokens for part in parts])[:num]
                calls = np.concatenate([part.stats.calls for part in parts])[:num]
                return tokens, calls, rounds

            def as_stream(wait, jobs=jobs):
                stream = begin(*shared, some(0))
                _, done = streams[wait](*shared, stream, jobs, True)
                number = np.asarray(done.number)
                order = np.argsort(number[:num])
                result = jax.tree.map(np.asarray, done.result)
                return (
                    result.tokens[:num][order],
                    result.stats.calls[:num][order],
                    int(result.stats.rounds),
                )

            methods = {"lockstep": in_batches}
            methods |= {f"refill, wait {w}": partial(as_stream, w) for w in waits}
            times: dict[str, list[float]] = {method: [] for method in methods}
            results = {}
            for _ in range(repeats + 1):  # the first compiles
                for method, run in methods.items():
                    began = time.perf_counter()
                    results[method] = run()
                    times[method].append(time.perf_counter() - began)
                    bar.update()
            timings = {method: Timing.of(times[method][1:]) for method in methods}
            base = timings["lockstep"]
            for method, (tokens, calls, rounds) in results.items():
                assert np.array_equal(tokens, results["lockstep"][0]), method
                found.append(
                    {
                        "lengths": words,
                        "method": method,
                        "rounds": rounds,
                        "slot_utilization": float((calls.sum() - num) / (rounds * rows)),
                        **timings[method].fields(),
                        **ratio_fields(speedup=(base, timings[method])),
                    }
                )
    return found


def streaming_markdown(result: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        f"# Continuous batching: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {device_name()}, jax {jax.__version__}. {result['num']} jobs, "
        f"{result['rows_side_by_side']} side by side, {result['nodes']} nodes; the "
        "same tokens either method. Rows in use: of all places in all rounds, those whose "
        f"job had not ended. Medians, the methods in turn. {RATIO_NOTE}",
        "",
        "| lengths | method | rounds | rows in use | seconds (least, most) | speedup |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['lengths']} | {row['method']} | {row['rounds']} | "
            f"{100 * row['slot_utilization']:.0f} % | {row['seconds']:.1f} "
            f"({row['min_seconds']:.1f}, {row['max_seconds']:.1f}) "
            f"| {shown(row, 'speedup')} |"
        )
    return "\n".join(lines) + "\n"
