"""Tokens per second and model-FLOPs utilization of training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.bench.plot import Line, Panel, plot_panels
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import (
    block_training_work,
    counted,
    training_work,
)
from jaxspec.bench.subjects import find_model
from jaxspec.bench.synthetic import block_config
from jaxspec.bench.tables import environment, report_heading, table
from jaxspec.bench.timing import time_interleaved
from jaxspec.config import TransformerConfig
from jaxspec.drafters.kinds import make_drafter
from jaxspec.models.transformer import Transformer
from jaxspec.timing import Timing, plot_value, ratio_fields, shown
from jaxspec.train import drafter as drafters
from jaxspec.train import prior as priors
from jaxspec.train.experiment import DrafterTrainingConfig, PriorTrainingConfig
from jaxspec.train.optimizer import begin
from jaxspec.train.recipes.block_diffusion import ANCHORS

KEYS = ("model", "part", "batch", "tokens")


def bench_training(
    models: list[str],
    parts: list[str],
    batch: int,
    *,
    grid: int,
    steps: int,
    dtype: str,
    repeats: int,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """One row for each model and part ("prior", "drafter").

    Steps are those of `jaxspec train`, on random codes: forward, backward, clipping,
    AdamW and the average of weights, which are float32; products are in `dtype`.

    Args:
      models: see `find_model`.
      parts: what is trained.
      batch: sequences of a step.
      grid: tokens along a side, of published sizes.
      steps: timed together.
      dtype: of the products.
      repeats: timed runs.
      checkpoint: what "default" means.
    """
    ceilings, rows = measure_ceilings(dtype), []
    cells = [(m, p) for m in models for p in parts]
    for name, part in tqdm(cells, desc="train", unit="cell"):
        bundle = find_model(name, grid=grid, checkpoint=checkpoint)
        config = bundle.prior.config
        given = config, batch, dtype, steps
        if part == "prior":
            run, compiler, work = _prior(*given)
        else:
            run, compiler, work = _drafter(*given, bundle.prior.params)
        timing = time_interleaved({"step": run}, repeats)["step"].per(steps)
        bound = work.flops / ceilings.flops_per_second
        rows.append(
            {
                "model": name,
                "part": part,
                "batch": batch,
                "tokens": config.sequence_length,
                **timing.fields(),
                "tokens_per_second": batch * config.sequence_length / timing.median,
                "flops": work.flops,
                **compiler,
                "bound_seconds": bound,
                **ratio_fields(achieved=(Timing.exact(bound), timing)),
            }
        )
    return {
        "dtype": dtype,
        "repeats": repeats,
        "ceilings": ceilings.fields(),
        "rows": rows,
        **environment(),
    }


def _prior(config: TransformerConfig, batch: int, dtype: str, steps: int):
    model = Transformer(config)
    settings = PriorTrainingConfig(steps=1000, batch=batch, compute_dtype=dtype)
    state = begin(settings, jax.jit(model.init)(jax.random.key(0)))
    work = training_work(config, rows=batch, tokens=config.sequence_length)
    step = priors.make_step(model, settings)
    return *_run(step, state, (), config, batch, steps), work


def _drafter(config: TransformerConfig, batch: int, dtype: str, steps: int, target):
    _, drafter = make_drafter(block_config(config), config)
    settings = DrafterTrainingConfig(steps=1000, batch=batch, compute_dtype=dtype)
    state = begin(settings, jax.jit(drafter.init_params)(jax.random.key(0)))
    step = drafters.make_step(drafter, settings, {})
    work = block_training_work(
        drafter, rows=batch, tokens=config.sequence_length, anchors=ANCHORS
    )
    return *_run(step, state, (target,), config, batch, steps, kept=(None,)), work


def _run(
    step: Callable, state: Any, fixed: tuple, config, batch: int, steps: int, kept=()
) -> tuple[Callable[[], Any], dict[str, float]]:
    """A call that takes so many steps, and what the compiler counts of one."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, config.vocab_size, (batch, config.sequence_length))
    labels = rng.integers(0, max(config.classes, 1), batch)
    given = jnp.asarray(codes, jnp.int32), jnp.asarray(labels, jnp.int32), *kept
    lowered = jax.jit(step, donate_argnums=0).lower(state, *fixed, np.int32(0), given)
    program = lowered.compile()
    held, done = [state], [0]

    def run():
        metrics = None
        for _ in range(steps):
            held[0], metrics = program(held[0], *fixed, np.int32(done[0]), given)
            done[0] += 1
        return metrics

    return run, counted(program)


def training_markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""

    def cells(row):
        return [
            row["model"],
            row["part"],
            row["batch"],
            row["tokens"],
            f"{1e3 * row['seconds']:.1f}",
            f"{1e3 * row['min_seconds']:.1f} to {1e3 * row['max_seconds']:.1f}",
            f"{row['tokens_per_second']:.0f}",
            shown(row, "achieved", "%"),
        ]

    words = (
        "A step of `jaxspec train` on random codes. Operations are those that the "
        "models need, without what is recomputed or masked (model-FLOPs utilization): "
        "three times a forward pass of what is trained, once that of a target."
    )
    columns = ["model", "part", "batch", "tokens each", "ms a step", "least to most"]
    columns += ["tokens/s", "achieved"]
    return report_heading("Training", result, words) + table(
        columns, [cells(r) for r in result["rows"]]
    )


def training_plot(result: dict[str, Any]) -> np.ndarray:
    """Utilisation of each model, in the order of the table."""
    rows = result["rows"]
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [r for r in rows if r["part"] == part]
        lines.append(Line(part, range(len(own)), [plot_value(r, "achieved") for r in own]))
    names = ", ".join(dict.fromkeys(row["model"] for row in rows))
    return plot_panels([Panel(names, lines)], "model", "bound / time")
