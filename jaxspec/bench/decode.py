"""Plain decoding, compared with the memory bound and with PyTorch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.bench import programs
from jaxspec.bench.baselines import torch_baselines, torch_description
from jaxspec.bench.models import find_model
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import Work, bound_fields, pass_work
from jaxspec.bench.variants import Variant, find_variant
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.interleaved import collect_errors, lazy, time_interleaved
from jaxspec.pipeline.timing import Timing, plot_value, ratio_fields, shown
from jaxspec.pipeline.tree_choice.compiling import Compiler, Program, local_compiler
from jaxspec.sharding.device import default_dtype

FILTERS = {"top_k": 1000, "top_p": 0.95}
FILTERED = ", top-k 1000, top-p 0.95"


def measure_decode(
    *,
    checkpoint: str | None = None,
    models: Sequence[str] = ("default",),
    dtype: str | None = None,
    grid: int = 24,
    repeats: int = 5,
    variants: Sequence[str] = ("xla",),
    compiler_options: Sequence[str] = (),
    batches: Sequence[int] = (1,),
    tokens: int = 0,
    no_baselines: bool = False,
) -> dict[str, Any]:
    """Times plain decoding for each model, batch size and method.

    All methods of one model and batch size are timed interleaved.

    Args:
      checkpoint: Bundle folder that "default" refers to.
      models: Names, see `find_model`.
      dtype: Dtype of weights and caches; None for `default_dtype`.
      grid: Tokens along a side, for published sizes.
      repeats: Number of timed runs.
      variants: Variants of the decoder, see `find_variant`.
      compiler_options: Options of XLA, see `parse_compiler_options`.
      batches: Batch sizes in images; CFG doubles the sequences of a forward pass.
      tokens: Maximum number of tokens of each image; 0 is all.
      no_baselines: Whether PyTorch is left out where it is installed.

    Returns:
      Report with one row per model, batch size and method. Times are per token.
    """
    dtype = dtype or default_dtype()
    options = programs.parse_compiler_options(compiler_options)
    decoders = [find_variant(name) for name in variants]
    ceilings, rows, failed = measure_ceilings(dtype), [], {}
    cells = [(model, batch) for model in models for batch in batches]
    for name, batch in tqdm(cells, desc="decode", unit="cell"):
        find = partial(find_model, name, grid=grid, dtype=dtype, checkpoint=checkpoint)
        config = find().prior.config
        length = min(tokens or config.sequence_length, config.sequence_length)
        work = partial(
            pass_work,
            config,
            sequences=2 * batch,
            nodes=1,
            filled=config.prefix_length + length / 2,
            itemsize=jnp.dtype(dtype).itemsize,
        )
        args = batch, length, local_compiler(options)
        methods = {
            method: _Method(call, work(int8=variant.int8))
            for variant in decoders
            for method, call in _jaxspec_calls(
                find(int8=variant.int8), variant, *args, filters=variant == decoders[0]
            ).items()
        }
        errors = {}
        if not no_baselines:
            with collect_errors(errors, "torch"):
                calls = torch_baselines(config, find().prior.params, batch, length)
                methods |= {key: _Method(call, work()) for key, call in calls.items()}
        calls = {method: x.call for method, x in methods.items()}
        times = time_interleaved(calls, repeats, errors=errors)
        for method, timing in times.items():
            row = {"model": name, "batch": batch, "method": method, "tokens": length}
            step = timing.per(length)
            row |= step.fields()
            rows.append(row | bound_fields(methods[method].work, ceilings, step))
        failed |= {f"{name}, batch {batch}, {key}": x for key, x in errors.items()}
    return {
        "dtype": dtype,
        "repeats": repeats,
        "compiler_options": options,
        "ceilings": ceilings.fields(),
        "baselines": "no PyTorch baseline" if no_baselines else torch_description(),
        "failed": failed,
        "rows": rows,
        **environment(),
    }


class _Method(NamedTuple):
    """Way of decoding: a program, and the work of one of its steps."""

    call: Program
    work: Work


def _jaxspec_calls(
    bundle: Bundle,
    variant: Variant,
    batch: int,
    length: int,
    compiler: Compiler,
    *,
    filters: bool,
) -> dict[str, Program]:
    """Programs of one variant by method, which are compiled when they are called.

    Args:
      bundle: Models.
      variant: Variant of the decoder.
      batch: Batch size in images.
      length: Tokens of each image.
      compiler: Compiler of the programs.
      filters: Whether decoding with top-k and top-p is included.
    """
    decode = partial(programs.decode_program, cache_stages=variant.cache_stages)
    makers: dict[str, Callable[..., Program]] = {"": decode}
    if variant.cache_stages == 1:
        makers[", forward passes only"] = programs.forward_program
    if filters:
        makers[FILTERED] = partial(decode, filters=FILTERS)
    model = Transformer(bundle.prior.config, variant.attention)
    args = model, bundle.prior.params, batch, length, compiler
    return {
        f"jaxspec{variant.suffix}{suffix}": lazy(make, *args)
        for suffix, make in makers.items()
    }


def decode_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_decode`."""
    references = {
        (row["model"], row["batch"]): Timing.from_report(row, result["repeats"])
        for row in result["rows"]
        if row["method"] == "jaxspec"
    }

    def cells(row):
        reference = references.get((row["model"], row["batch"]))
        timing = Timing.from_report(row, result["repeats"])
        relative = ""
        if reference:
            relative = shown(ratio_fields(time=(timing, reference)), "time")
        return [
            row["model"],
            row["batch"],
            row["method"],
            f"{1e3 * row['seconds']:.3f}",
            f"{1e3 * row['min_seconds']:.3f} to {1e3 * row['max_seconds']:.3f}",
            f"{1e3 * row['bound_seconds']:.3f}",
            shown(row, "achieved", "%"),
            relative,
        ]

    description = (
        "A step yields one token for every image of a batch and computes both CFG "
        "branches. Milliseconds are the time to decode all tokens over their number. "
        '"Forward passes only" omits noise and sampling. Baseline: '
        f"{result['baselines']}."
    )
    names = ["model", "batch", "method", "ms per step", "min to max", "bound ms"]
    columns = [*names, "achieved", "time relative to jaxspec"]
    return report_heading("Plain decoding", result, description) + markdown_table(
        columns, [cells(row) for row in result["rows"]]
    )


def decode_plot(result: dict[str, Any]) -> np.ndarray:
    """Plots the fraction of the bound over the batch size, one panel per model."""
    panels, rows = [], result["rows"]
    for model in dict.fromkeys(row["model"] for row in rows):
        model_rows = [row for row in rows if row["model"] == model]
        lines = []
        for method in dict.fromkeys(row["method"] for row in model_rows):
            points = [row for row in model_rows if row["method"] == method]
            x = [p["batch"] for p in points]
            y = [plot_value(p, "achieved") for p in points]
            lines.append(Line(method, x, y))
        panels.append(Panel(model, lines))
    return plot_panels(panels, "batch", "bound / time")
