"""Programs compiled ahead of time for other devices: kernels and memory."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from docs.studies.compiled.devices import DeviceSpec, compiler_for, find_device
from docs.studies.compiled.next_scale import (
    image_bound,
    image_program,
    is_next_scale,
)
from docs.studies.compiled.program import Loop, largest_loop, whole_program
from jaxspec import __version__
from jaxspec.bench import programs
from jaxspec.bench.models import find_shapes
from jaxspec.bench.roofline.work import pass_work
from jaxspec.bench.variants import Variant, find_variant
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import markdown_table
from jaxspec.models.next_scale.presets import preset
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.interleaved import collect_errors
from jaxspec.pipeline.tree_choice.compiling import Compiler
from jaxspec.pipeline.tree_choice.programs import pass_program
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.parsing import parse_tree
from jaxspec.speculative.trees.tree import Tree


def measure_compiled(
    *,
    devices: Sequence[str] = ("h100", "v5e"),
    checkpoint: str | None = None,
    models: Sequence[str] = ("default",),
    variants: Sequence[str] = ("xla",),
    grid: int = 24,
    batches: Sequence[int] = (1,),
    nodes: Sequence[int] = (26, 64),
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """Compiles programs for each device, model, batch size and variant; runs none.

    The programs are plain decoding with sampling, a forward pass over a draft tree with
    caches filled by half an image, and a whole round with fixed drafts; of next-scale
    models one that makes all maps of an image.

    Args:
      devices: Names of devices, see `DEVICES`.
      checkpoint: Bundle folder that "default" refers to.
      models: Names, see `find_shapes`, or published sizes of next-scale models.
      variants: Variants of the decoder, see `find_variant`.
      grid: Tokens along a side, for published sizes.
      batches: Batch sizes in images; CFG doubles the sequences of a forward pass.
      nodes: Tree sizes.
      dtype: Dtype of weights and caches.

    Returns:
      Report with one row per combination and program.

    Raises:
      ConfigError: A device or model is unknown, or a variant cannot be compiled without
        its device.
    """
    decoders = _find_variants(variants)
    rows, failed = [], {}
    targets = {name: find_device(name) for name in devices}
    settings = {"grid": grid, "dtype": dtype, "checkpoint": checkpoint}
    shapes = {
        (name, int8): find_shapes(name, int8=int8, **settings)
        for name in models
        if not is_next_scale(name)
        for int8 in {variant.int8 for variant in decoders}
    }
    trees = {size: parse_tree(f"optimal-{size}") for size in nodes}
    cells = list(itertools.product(devices, models, batches, decoders))
    with tqdm(total=len(cells) * (1 + 2 * len(trees)), desc="compiling") as bar:
        for name, model, batch, variant in cells:
            spec, device = targets[name]
            if is_next_scale(model):
                if variant == decoders[0]:  # it has no variants
                    rows += _image_rows(name, model, batch, dtype, targets, failed)
                bar.update(1 + 2 * len(trees))
                continue
            config, params = shapes[model, variant.int8]
            compiled: list[Any] = []
            compiler = compiler_for(device, compiled.append)
            args = Transformer(config, variant.attention), params, batch
            filled = config.prefix_length + config.sequence_length // 2
            work = partial(
                pass_work,
                config,
                sequences=2 * batch,
                filled=filled,
                itemsize=jnp.dtype(dtype).itemsize,
                int8=variant.int8,
            )
            method = f"jaxspec{variant.suffix}"
            cell = dict(device=name, model=model, batch=batch, method=method)
            for kind, size, compile_program in _programs(args, trees, filled, compiler):
                label = f"{name}, {model}, batch {batch}, {method}, {kind}"
                with collect_errors(failed, label):
                    compile_program()
                    counts = _counts(compiled[-1], spec)
                    bound = {"bound_seconds": work(nodes=size).bound(spec.ceilings)}
                    rows.append({**cell, "program": kind, **counts, **bound})
                bar.update()
    return {
        "devices": {name: spec.name for name, (spec, _) in targets.items()},
        "dtype": dtype,
        "grid": grid,
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
        "failed": failed,
        "rows": rows,
    }


def _image_rows(name, model, batch, dtype, targets, failed) -> list[dict[str, Any]]:
    """Row of the program that makes all maps of images; none if it fails."""
    spec, device = targets[name]
    compiled: list[Any] = []
    compiler = compiler_for(device, compiled.append)
    with collect_errors(failed, f"{name}, {model}, batch {batch}, image"):
        image_program(model, batch, dtype, compiler)()
        itemsize = jnp.dtype(dtype).itemsize
        bound = image_bound(preset(model), batch, itemsize, spec.ceilings)
        cell = dict(device=name, model=model, batch=batch, method="jaxspec")
        counts = _counts(compiled[-1], spec, whole_program)
        return [{**cell, "program": "image", **counts, "bound_seconds": bound}]
    return []


def _find_variants(names: Sequence[str]) -> list[Variant]:
    """Variants that can be compiled without their device."""
    variants = [find_variant(name) for name in names]
    if any(x.cache_stages > 1 or x.attention == "cudnn" for x in variants):
        raise ConfigError(
            "stagesN needs `bench decode`, and cudnn needs its GPU: "
            "choose of xla, pallas, int8"
        )
    return variants


def _programs(
    args: tuple[Transformer, Any, int],
    trees: Mapping[int, Tree | DynamicTree],
    filled: int,
    compiler: Compiler,
) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Yields name, nodes of a pass, and a call that compiles it, of each program.

    Args:
      args: Model, shapes of its parameters, and batch size.
      trees: Draft trees by size.
      filled: Number of cache slots in use.
      compiler: Compiler of the programs.
    """
    length = args[0].config.sequence_length
    yield "decode", 1, partial(programs.decode_program, *args, length, compiler)
    for size, tree in trees.items():
        tree_args = *args, tree, filled, 4, compiler
        yield f"verify {size}", size, partial(pass_program, *tree_args)
        yield f"round {size}", size, partial(programs.round_program, *tree_args)


def _counts(
    program: Any, spec: DeviceSpec, count: Callable[[str], Loop] = largest_loop
) -> dict[str, Any]:
    """Kernels, estimated time and temporary memory of a compiled program."""
    loop = count(program.as_text())
    return {
        "kernels": loop.kernels,
        "estimated_seconds": loop.cycles / spec.hertz if spec.hertz else None,
        "temporary_bytes": _temporary_bytes(program),
    }


def _temporary_bytes(program: Any) -> int | None:
    """Size of temporary buffers, where the compiler reports it."""
    memory = program.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


def compiled_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_compiled`."""

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
            f"{result['grid']} x {result['grid']} tokens for published sizes that "
            "decode token by token. Nothing was run: the programs were compiled ahead "
            "of time, without autotuning on the device.",
            "",
            '"Kernels" is the number of kernels launched in one iteration of the loop: '
            "a decode step with sampling, a forward pass over a tree, or a round with "
            "fixed drafts; of the program that makes all maps of an image, of all of "
            "it. On TPUs it counts operations and copies, many of which take "
            'almost no time. "Estimated ms" is the compiler\'s estimate for TPUs '
            "without waiting for memory; custom kernels have no estimate and count as "
            '0. "Bound" is the larger of bytes over published bandwidth and FLOPs over '
            "published peak rate.",
            "",
            *(["Failed:", "", *failed] if failed else []),
            markdown_table(columns, rows),
        ]
    )
