"""Training loop of all trainers: logging, resuming, and the best checkpoint."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import load_state, save_state
from jaxspec.errors import CheckpointError, DataError, NonFiniteError
from jaxspec.train.experiment import TrainingConfig
from jaxspec.train.progress import (
    METRICS,
    PROGRESS,
    load_best_metrics,
    load_progress,
    truncate_log,
)

Metrics = dict[str, float]


def fit(
    workdir: str | Path,
    config: TrainingConfig,
    state: Any,
    step_fn: Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]],
    batch_fn: Callable[[int], Any],
    evaluate: Callable[[Any], Metrics],
    select: Callable[[Any], Any],
    label: str,
    fingerprint: str,
) -> tuple[Any, Metrics]:
    """Trains a model and returns its parameters at the lowest held-out loss.

    A killed run that is started again resumes from its last saved state and writes the
    same `metrics.jsonl` as an uninterrupted run.

    Args:
      workdir: folder of `state/`, `best/` and `metrics.jsonl`.
      config: number of steps, and intervals between logging, evaluating and saving.
      state: initial pytree of arrays.
      step_fn: jitted step `(state, step, batch) -> (state, metrics)`.
      batch_fn: batch of a step, a pure function of the step's index.
      evaluate: held-out metrics of a state, among them "heldout_loss".
      select: function from a state to the pytree to return.
      label: name on the progress bar.
      fingerprint: identity of the training; see `train.experiment.fingerprint`.

    Returns:
      `select(state)` at the lowest "heldout_loss", and the metrics of that step with
      "step" and "seconds" (of the whole training, over all its runs).

    Raises:
      NonFiniteError: loss or weights became NaN or infinite; they are not saved.
      CheckpointError: `workdir` holds the state of another training.
      ConfigError: the saved training cannot continue with `config`; see
        `train.progress`.
      DataError: `metrics.jsonl` cannot be written.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    log, saved = workdir / "metrics.jsonl", workdir / "state"
    progress = load_progress(workdir, config, fingerprint, label)
    best = None
    if progress["step"]:
        state = load_state(saved, state)
        best = load_best_metrics(workdir, fingerprint)
    truncate_log(log, progress["step"])

    began = time.perf_counter() - progress["seconds"]
    bar = tqdm(total=config.steps, initial=progress["step"], desc=label, mininterval=1)
    with open(log, "a", encoding="utf-8") as lines, bar:
        for step in range(progress["step"], config.steps):
            state, metrics = step_fn(state, np.int32(step), batch_fn(step))
            done = step + 1
            bar.update()

            def due(every: int, done: int = done) -> bool:
                return done % every == 0 or done == config.steps

            saving = due(config.evaluate_every) or due(config.save_every)
            if due(config.log_every) or saving:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                _check(values["loss"], state if saving else (), done, progress["step"])
            if due(config.log_every):
                _write(lines, {"step": done, **values})
                bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            if due(config.evaluate_every):
                values = evaluate(state)
                if np.isnan(values["heldout_loss"]):
                    raise _not_finite(
                        "the held-out loss is nan", done, progress["step"]
                    )
                _write(lines, {"step": done, **values})
                if best is None or values["heldout_loss"] < best["heldout_loss"]:
                    best = {"step": done, **values}
                    note = json.dumps({"fingerprint": fingerprint, "metrics": best})
                    save_state(workdir / "best", select(state), {METRICS: note})
                tqdm.write(
                    f"{label} step {done}: "
                    + ", ".join(f"{k} {v:.4g}" for k, v in values.items()),
                    file=sys.stderr,
                )
            if due(config.save_every):
                progress.update(step=done, seconds=time.perf_counter() - began)
                save_state(saved, state, {PROGRESS: json.dumps(progress)})
    if best is None:
        raise CheckpointError(
            f"'{workdir / 'best'}' is missing; remove '{workdir}' and train again"
        )
    selected = load_state(workdir / "best", jax.eval_shape(select, state))
    return selected, {**best, "seconds": progress["seconds"]}


def _check(loss: float, state: Any, step: int, saved: int) -> None:
    """Raises `NonFiniteError` if the loss, or weights to be saved, are not finite."""
    if not np.isfinite(loss):
        raise _not_finite(f"the training loss is {loss}", step, saved)
    if not _finite(state):
        raise _not_finite("weights are NaN or infinite", step, saved)


@jax.jit
def _finite(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in floats], bool))


def _not_finite(what: str, step: int, saved: int) -> NonFiniteError:
    resumed = f"resumes from step {saved}" if saved else "starts from the beginning"
    return NonFiniteError(
        f"{what} at step {step}; lower learning_rate in the preset and run the same "
        f"command again: it {resumed}"
    )


def _write(lines, record: dict[str, Any]) -> None:
    try:
        lines.write(json.dumps(record) + "\n")
        lines.flush()
    except OSError as error:
        raise DataError(f"cannot write '{lines.name}': {error.strerror}") from None
