"""Training throughput: tokens per second and model-FLOPs utilization."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.bench.models import find_model
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import (
    block_training_work,
    compiler_counts,
    training_work,
)
from jaxspec.bench.synthetic import block_config
from jaxspec.config import TransformerConfig
from jaxspec.drafters.dflash.training import ANCHORS
from jaxspec.drafters.registry import make_drafter
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.timing import Timing, plot_value, ratio_fields, shown
from jaxspec.sharding.device import default_dtype
from jaxspec.train import drafter as drafters
from jaxspec.train import prior as priors
from jaxspec.train.optimizer import init_train_state
from jaxspec.train.settings import DrafterTrainingConfig, PriorTrainingConfig


def measure_training(
    *,
    checkpoint: str | None = None,
    models: Sequence[str] = ("default",),
    dtype: str | None = None,
    grid: int = 24,
    repeats: int = 3,
    parts: Sequence[str] = ("prior", "drafter"),
    batch: int = 16,
    steps: int = 3,
) -> dict[str, Any]:
    """Times training steps of each model and part.

    Steps are those of `jaxspec train`, on random tokens: forward and backward pass,
    gradient clipping, AdamW and the moving average of the weights. Weights are float32,
    matrix products are computed in `dtype`.

    Args:
      checkpoint: Bundle folder that "default" refers to.
      models: Names, see `find_model`.
      dtype: Dtype of the matrix products; None for `default_dtype`.
      grid: Tokens along a side, for published sizes.
      repeats: Number of timed runs.
      parts: Trained parts, of "prior" and "drafter".
      batch: Sequences per step.
      steps: Number of steps of a timed run.

    Returns:
      Report with one row per model and part. Times are per step.
    """
    dtype = dtype or default_dtype()
    ceilings, rows = measure_ceilings(dtype), []
    cells = [(m, p) for m in models for p in parts]
    for name, part in tqdm(cells, desc="train", unit="cell"):
        bundle = find_model(name, grid=grid, checkpoint=checkpoint)
        config = bundle.prior.config
        args = config, batch, dtype, steps
        if part == "prior":
            run, counts, work = _prior_program(*args)
        else:
            run, counts, work = _drafter_program(*args, bundle.prior.params)
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
                **counts,
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


def _prior_program(config: TransformerConfig, batch: int, dtype: str, steps: int):
    """Training steps of a prior, the compiler's counts, and the work of a step."""
    model = Transformer(config)
    settings = PriorTrainingConfig(steps=1000, batch=batch, compute_dtype=dtype)
    state = init_train_state(settings, jax.jit(model.init)(jax.random.key(0)))
    work = training_work(config, batch=batch, tokens=config.sequence_length)
    step = priors.make_step(model, settings)
    return *_compile_steps(step, state, (), config, batch, steps), work


def _drafter_program(
    config: TransformerConfig, batch: int, dtype: str, steps: int, target_params
):
    """Training steps of a block drafter; returns the same as `_prior_program`."""
    drafter = make_drafter(block_config(config), config)
    settings = DrafterTrainingConfig(steps=1000, batch=batch, compute_dtype=dtype)
    state = init_train_state(settings, jax.jit(drafter.init_params)(jax.random.key(0)))
    step = drafters.make_step(drafter, settings, {})
    work = block_training_work(
        drafter, batch=batch, tokens=config.sequence_length, anchors=ANCHORS
    )
    frozen = (target_params,)
    program = _compile_steps(
        step, state, frozen, config, batch, steps, cached_features=(None,)
    )
    return *program, work


def _compile_steps(
    step: Callable,
    state: Any,
    frozen: tuple,
    config: TransformerConfig,
    batch: int,
    steps: int,
    cached_features: tuple = (),
) -> tuple[Callable[[], Any], dict[str, float]]:
    """Compiles a training step.

    Args:
      step: Training step of `jaxspec.train`.
      state: Initial training state.
      frozen: Arguments of the step between state and step number.
      config: Config of the target.
      batch: Sequences per step.
      steps: Number of steps per call.
      cached_features: Further elements of the training batch.

    Returns:
      A call that runs `steps` steps, and the compiler's counts for one step.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (batch, config.sequence_length))
    labels = rng.integers(0, max(config.classes, 1), batch)
    inputs = jnp.asarray(tokens, jnp.int32), jnp.asarray(labels, jnp.int32)
    inputs += cached_features
    lowered = jax.jit(step, donate_argnums=0).lower(state, *frozen, np.int32(0), inputs)
    program = lowered.compile()
    donated, done = [state], [0]

    def run():
        metrics = None
        for _ in range(steps):
            donated[0], metrics = program(
                donated[0], *frozen, np.int32(done[0]), inputs
            )
            done[0] += 1
        return metrics

    return run, compiler_counts(program)


def training_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_training`."""

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

    description = (
        "Steps of `jaxspec train` on random tokens. FLOPs are model FLOPs, without "
        "recomputation and masked attention: three times a forward pass of the trained "
        "model, and one forward pass of a frozen target."
    )
    columns = ["model", "part", "batch", "tokens per sequence", "ms per step"]
    columns += ["min to max", "tokens/s", "achieved"]
    return report_heading("Training", result, description) + markdown_table(
        columns, [cells(row) for row in result["rows"]]
    )


def training_plot(result: dict[str, Any]) -> np.ndarray:
    """Plots the utilization of each model, in the order of the table."""
    rows = result["rows"]
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        points = [row for row in rows if row["part"] == part]
        y = [plot_value(row, "achieved") for row in points]
        lines.append(Line(part, range(len(points)), y))
    names = ", ".join(dict.fromkeys(row["model"] for row in rows))
    return plot_panels([Panel(names, lines)], "model", "bound / time")
