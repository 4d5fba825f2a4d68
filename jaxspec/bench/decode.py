"""Plain decoding, compared with the memory bound and with PyTorch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.bench import programs
from jaxspec.bench.baselines import torch_baselines, torch_description
from jaxspec.bench.models import find_model
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import pass_work
from jaxspec.bench.timing import collect_errors, lazy, time_interleaved
from jaxspec.bench.variants import Variant
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.timing import Timing, plot_value, ratio_fields, shown

KEYS = ("model", "batch", "tokens", "method")
FILTERS = {"top_k": 1000, "top_p": 0.95}
FILTERED = ", top-k 1000, top-p 0.95"


def bench_decode(
    models: list[str],
    batches: list[int],
    variants: list[Variant],
    *,
    grid: int,
    tokens: int,
    dtype: str,
    repeats: int,
    baselines: bool = True,
    checkpoint: str | None = None,
    options: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Times plain decoding for each model, batch size and method.

    All methods of one model and batch size are timed interleaved.

    Args:
      models: Names, see `find_model`.
      batches: Batch sizes in images; CFG doubles the sequences of a forward pass.
      variants: Variants of the decoder.
      grid: Tokens along a side, for published sizes.
      tokens: Maximum number of tokens of each image; 0 is all.
      dtype: Dtype of weights and caches.
      repeats: Number of timed runs.
      baselines: Whether PyTorch is measured too, where it is installed.
      checkpoint: Bundle folder that "default" refers to.
      options: Compiler options of XLA.

    Returns:
      Report with one row per model, batch size and method. Times are per token.
    """
    ceilings, rows, failed = measure_ceilings(dtype), [], {}
    compiler = programs.local_compiler(options)
    cells = [(m, b) for m in models for b in batches]
    with tqdm(total=len(cells), desc="decode", unit="cell") as bar:
        for name, batch in cells:
            find = partial(
                find_model, name, grid=grid, dtype=dtype, checkpoint=checkpoint
            )
            unquantized = find()
            config = unquantized.prior.config
            length = min(tokens or config.sequence_length, config.sequence_length)
            work = partial(
                pass_work,
                config,
                sequences=2 * batch,
                nodes=1,
                filled=config.prefix_length + length / 2,
                itemsize=jnp.dtype(dtype).itemsize,
            )
            calls, works, errors = {}, {}, {}
            for variant in variants:
                bundle = find(int8=True) if variant.int8 else unquantized
                model = Transformer(config, variant.attention)
                decode = partial(
                    programs.decode_program, cache_stages=variant.cache_stages
                )
                makers: dict[str, Callable[..., programs.Program]] = {"": decode}
                if variant.cache_stages == 1:
                    makers[", forward passes only"] = programs.forward_program
                if variant == variants[0]:
                    makers[FILTERED] = partial(decode, filters=FILTERS)
                for suffix, make in makers.items():
                    method = f"jaxspec{variant.suffix}{suffix}"
                    args = model, bundle.prior.params, batch, length, compiler
                    calls[method] = lazy(make, *args)
                    works[method] = work(int8=variant.int8)
            if baselines:
                with collect_errors(errors, "torch"):
                    torch_calls = torch_baselines(
                        config, unquantized.prior.params, batch, length
                    )
                    calls |= torch_calls
                    works |= dict.fromkeys(torch_calls, work())
            times = time_interleaved(calls, repeats, errors=errors)
            for method, timing in times.items():
                step, bound = timing.per(length), works[method].bound(ceilings)
                rows.append(
                    {
                        "model": name,
                        "batch": batch,
                        "method": method,
                        "tokens": length,
                        **step.fields(),
                        "bytes": works[method].bytes,
                        "flops": works[method].flops,
                        "bound_seconds": bound,
                        **ratio_fields(achieved=(Timing.exact(bound), step)),
                    }
                )
            failed |= {
                f"{name}, batch {batch}, {method}": error
                for method, error in errors.items()
            }
            bar.update()
    return {
        "dtype": dtype,
        "repeats": repeats,
        "compiler_options": options or {},
        "ceilings": ceilings.fields(),
        "baselines": torch_description() if baselines else "no PyTorch baseline",
        "failed": failed,
        "rows": rows,
        **environment(),
    }


def decode_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `bench_decode`."""
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
