"""Programs compiled ahead of time for other devices: kernels and memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from docs.studies.compiled.devices import compiler_for, find_device
from docs.studies.compiled.program import largest_loop
from jaxspec import __version__
from jaxspec.bench.models import find_shapes
from jaxspec.bench.roofline.work import pass_work
from jaxspec.bench.timing import collect_errors
from jaxspec.bench.variants import Variant
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import markdown_table
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.trees.parsing import parse_tree


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
    """Compiles programs for each device, model, batch size and variant; runs none.

    The programs are plain decoding with sampling, a forward pass over a draft tree with
    caches filled by half an image, and a whole round with fixed drafts.

    Args:
      devices: Names of devices, see `DEVICES`.
      models: Names, see `find_shapes`.
      batches: Batch sizes in images; CFG doubles the sequences of a forward pass.
      nodes: Tree sizes.
      variants: Variants of the decoder.
      grid: Tokens along a side, for published sizes.
      dtype: Dtype of weights and caches.
      checkpoint: Bundle folder that "default" refers to.

    Returns:
      Report with one row per combination and program.

    Raises:
      ConfigError: A device or model is unknown, or a variant cannot be compiled without
        its device.
    """
    for variant in variants:
        if variant.cache_stages > 1 or variant.attention == "cudnn":
            raise ConfigError(
                "stagesN needs `bench decode`, and cudnn needs its GPU: "
                "choose of xla, pallas, int8"
            )
    rows, failed = [], {}
    targets = {name: find_device(name) for name in devices}
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
            spec, device = targets[name]
            config, params = shapes[model, variant.int8]
            programs: list[Any] = []
            compiler = compiler_for(device, programs.append)
            args = Transformer(config, variant.attention), params, batch
            filled = config.prefix_length + config.sequence_length // 2
            length = config.sequence_length
            decode = partial(programs.decode_program, *args, length, compiler)
            calls = {"decode": (1, decode)}
            for size, tree in trees.items():
                tree_args = *args, tree, filled, 4, compiler
                calls |= {
                    f"verify {size}": (
                        size,
                        partial(programs.verify_program, *tree_args),
                    ),
                    f"round {size}": (
                        size,
                        partial(programs.round_program, *tree_args),
                    ),
                }
            for kind, (size, call) in calls.items():
                method = f"jaxspec{variant.suffix}"
                with collect_errors(
                    failed, f"{name}, {model}, batch {batch}, {method}, {kind}"
                ):
                    call()
                    loop = largest_loop(programs[-1].as_text())
                    work = pass_work(
                        config,
                        sequences=2 * batch,
                        nodes=size,
                        filled=filled,
                        itemsize=jnp.dtype(dtype).itemsize,
                        int8=variant.int8,
                    )
                    seconds = loop.cycles / spec.hertz if spec.hertz else None
                    rows.append(
                        {
                            "device": name,
                            "model": model,
                            "batch": batch,
                            "method": method,
                            "program": kind,
                            "kernels": loop.kernels,
                            "estimated_seconds": seconds,
                            "bound_seconds": work.bound(spec.ceilings),
                            "temporary_bytes": _temporary_bytes(programs[-1]),
                        }
                    )
                bar.update()
    return {
        "devices": {name: spec.name for name, (spec, _) in targets.items()},
        "dtype": dtype,
        "grid": grid,
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
        "failed": failed,
        "rows": rows,
    }


def _temporary_bytes(program: Any) -> int | None:
    """Size of temporary buffers, where the compiler reports it."""
    memory = program.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


def compiled_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `bench_compiled`."""

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
            row["program"],
            row["kernels"],
            milliseconds(row["estimated_seconds"]),
            milliseconds(row["bound_seconds"]),
            mebibytes(row["temporary_bytes"]),
        ]
        for row in result["rows"]
    ]
    names = ["device", "model", "batch", "method", "program", "kernels"]
    columns = [*names, "estimated ms", "bound ms", "temporary MiB"]
    failed = [f"- {cell}: {why}\n" for cell, why in result["failed"].items()]
    return "\n".join(
        [
            "# Programs compiled for other devices",
            "",
            f"`{result['command']}`",
            "",
            f"jax {result['versions']['jax']}, {result['dtype']}, both CFG branches, "
            f"{result['grid']} x {result['grid']} tokens for published sizes. Nothing "
            "was run: the programs were compiled ahead of time, without autotuning on "
            "the device.",
            "",
            '"Kernels" is the number of kernels launched in one iteration of the loop: '
            "a decode step with sampling, a forward pass over a tree, or a round with "
            "fixed drafts. On TPUs it counts operations and copies, many of which take "
            'almost no time. "Estimated ms" is the compiler\'s estimate for TPUs '
            "without waiting for memory; custom kernels have no estimate and count as "
            '0. "Bound" is the larger of bytes over published bandwidth and FLOPs over '
            "published peak rate.",
            "",
            *(["Failed:", "", *failed] if failed else []),
            markdown_table(columns, rows),
        ]
    )
