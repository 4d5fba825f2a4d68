"""What compilers make of a step for devices that are not at hand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from jaxspec import __version__
from jaxspec.bench import passes
from jaxspec.bench.compiled.devices import compiler_for, find_device
from jaxspec.bench.compiled.program import largest_loop
from jaxspec.bench.roofline.work import pass_work
from jaxspec.bench.subjects import find_shapes
from jaxspec.bench.tables import table
from jaxspec.bench.timing import collect_errors
from jaxspec.bench.variants import Variant
from jaxspec.errors import ConfigError
from jaxspec.models.transformer import Transformer
from jaxspec.trees import parse_tree


def bench_compiled(
    devices: list[str],
    models: list[str],
    batches: list[int],
    nodes: list[int],
    variants: list[Variant],
    *,
    grid: int,
    dtype: str,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """A row for each device, model, batch, method and pass; nothing is run.

    Passes are a step of plain decoding with its sampling, verifying so many nodes
    behind half an image, and a whole round of it with given drafts.

    Args:
      devices: see `DEVICES`.
      models: see `find_shapes`.
      batches: images side by side; guided, so twice as many rows.
      nodes: of trees.
      variants: of our own program.
      grid: tokens along a side, of published sizes.
      dtype: of weights and caches.
      checkpoint: what "default" means.

    Raises:
      ConfigError: a device or a model that is not known, or a method that cannot be
        compiled without its device.
    """
    for variant in variants:
        if variant.cache_stages > 1 or variant.attention == "cudnn":
            raise ConfigError(
                "phases are for `bench decode`, and cuDNN needs its GPU: "
                "choose of xla, pallas, int8"
            )
    rows, failed = [], {}
    absent = {name: find_device(name) for name in devices}
    shapes = {
        (name, int8): find_shapes(
            name, grid=grid, dtype=dtype, int8=int8, checkpoint=checkpoint
        )
        for name in models
        for int8 in {variant.int8 for variant in variants}
    }
    trees = {size: parse_tree(f"optimal-{size}") for size in nodes}
    cells = [
        (d, m, b, v) for d in devices for m in models for b in batches for v in variants
    ]
    kinds = ["decode", *(f"{x} {n}" for n in nodes for x in ("verify", "round"))]
    with tqdm(total=len(cells) * len(kinds), desc="compiling") as bar:
        for name, model, batch, variant in cells:
            figures, device = absent[name]
            config, params = shapes[model, variant.int8]
            made: list[Any] = []
            build = compiler_for(device, made.append)
            given = Transformer(config, variant.attention), params, batch
            filled = config.prefix_length + config.sequence_length // 2
            length = config.sequence_length
            loop = partial(passes.decode_program, *given, length, build)
            calls = {"decode": (1, loop)}
            for size, tree in trees.items():
                rest = tree, filled, 4, build
                calls |= {
                    f"verify {size}": (
                        size,
                        partial(passes.verify_program, *given, *rest),
                    ),
                    f"round {size}": (size, partial(passes.round_program, *given, *rest)),
                }
            for kind, (size, call) in calls.items():
                method = f"jaxspec{variant.words}"
                with collect_errors(failed, f"{name}, {model}, batch {batch}, {method}, {kind}"):
                    call()
                    turn = largest_loop(made[-1].as_text())
                    work = pass_work(
                        config,
                        rows=2 * batch,
                        nodes=size,
                        filled=filled,
                        itemsize=jnp.dtype(dtype).itemsize,
                        int8=variant.int8,
                    )
                    seconds = turn.cycles / figures.hertz if figures.hertz else None
                    rows.append(
                        {
                            "device": name,
                            "model": model,
                            "batch": batch,
                            "method": method,
                            "pass": kind,
                            "kernels": turn.kernels,
                            "expected_seconds": seconds,
                            "bound_seconds": work.bound(figures.ceilings),
                            "temporary_bytes": _temporary(made[-1]),
                        }
                    )
                bar.update()
    return {
        "devices": {name: found.name for name, (found, _) in absent.items()},
        "dtype": dtype,
        "grid": grid,
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
        "failed": failed,
        "rows": rows,
    }


def _temporary(program: Any) -> int | None:
    memory = program.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


def compiled_markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""

    def milliseconds(seconds):
        return "" if not seconds else f"{1e3 * seconds:.2f}"

    def mebibytes(size):
        return "" if size is None else f"{size / 2**20:.0f}"

    rows = [
        [
            result["devices"][row["device"]],
            row["model"],
            row["batch"],
            row["method"],
            row["pass"],
            row["kernels"],
            milliseconds(row["expected_seconds"]),
            milliseconds(row["bound_seconds"]),
            mebibytes(row["temporary_bytes"]),
        ]
        for row in result["rows"]
    ]
    names = ["device", "model", "batch", "method", "pass", "kernels"]
    columns = [*names, "expected ms", "bound ms", "temporary MiB"]
    failed = [f"- {cell}: {why}\n" for cell, why in result["failed"].items()]
    return "\n".join(
        [
            "# Compiled for devices that are not at hand",
            "",
            f"`{result['command']}`",
            "",
            f"jax {result['versions']['jax']}, {result['dtype']}, both guidance "
            f"streams, {result['grid']} x {result['grid']} tokens of published sizes. "
            "Nothing was run: these are the programs that the devices' own compilers "
            "make, without tuning on the device.",
            "",
            '"Kernels" are launched in one turn of the loop: a step with its sampling, '
            "a pass over a tree, or a round with given drafts; on a TPU they are "
            "operations and copies, of which many take next to nothing. Its compiler "
            'says what it expects each to take beside waiting for memory ("expected '
            'ms"; kernels that are not its own count nothing). '
            '"Bound" is the larger of bytes over published bandwidth and operations '
            "over published rate.",
            "",
            *(["Could not be compiled:", "", *failed] if failed else []),
            table(columns, rows),
        ]
    )
