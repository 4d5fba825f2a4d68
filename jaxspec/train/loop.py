"""Training loop of all trainers: logging, resuming, and the kept checkpoint."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import Checkpoint, load_state, save_state
from jaxspec.errors import CheckpointError, DataError, NonFiniteError
from jaxspec.train.events import Observer, TrainingEvent, notify
from jaxspec.train.progress import (
    METRICS,
    PROGRESS,
    load_best_metrics,
    load_progress,
    truncate_log,
)
from jaxspec.train.settings import TrainingConfig
from jaxspec.train.sharding import TrainSharding
from jaxspec.train.signals import stop_requests

Metrics = dict[str, float]
# A state is also saved when this many seconds have passed since the last time.
SAVE_SECONDS = 300.0


@dataclass(frozen=True)
class Training:
    """Functions and settings of one training; a trainer of each part makes one.

    Attributes:
      part: name of the trained part.
      config: number of steps, and intervals between logging, evaluating and saving.
      step_fn: step `(state, *frozen, step, batch) -> (state, metrics)`.
      batch_fn: batch of a step, a pure function of the step's index.
      evaluate: evaluation `(state, *frozen) -> metrics` on held-out data, with the
        metric "heldout_loss".
      fingerprint: identity of the training; see `train.identity.fingerprint`.
      result: function from a state to the parameters to return.
      frozen: pytrees of arrays that are not trained. As arguments they are not compiled
        into the step as constants.
    """

    part: str
    config: TrainingConfig
    step_fn: Callable[..., tuple[Any, dict[str, Any]]]
    batch_fn: Callable[[int], Any]
    evaluate: Callable[..., Metrics]
    fingerprint: str
    result: Callable[[Any], Any] = lambda state: state["average"]
    frozen: tuple[Any, ...] = ()


class TrainingJob(NamedTuple):
    """A training with its initial state, ready to run.

    Attributes:
      training: functions and settings.
      state: initial pytree of arrays.
      finish: function from the trained parameters and their metrics to checkpoints, by
        part.
    """

    training: Training
    state: Any
    finish: Callable[[Any, Metrics], dict[str, Checkpoint]]


def run_job(
    job: TrainingJob,
    workdir: Path,
    sharding: TrainSharding,
    observers: Sequence[Observer] = (),
) -> dict[str, Checkpoint]:
    """Runs a training to its end, or resumes it; see `fit`."""
    state, placed = place(job, sharding)
    return job.finish(*fit(workdir, state, placed, observers))


def place(job: TrainingJob, sharding: TrainSharding) -> tuple[Any, Training]:
    """Places a training on its devices and compiles its step.

    Args:
      job: training and initial state.
      sharding: devices of the state, the batches and the frozen arrays.
    """
    training, state = job.training, sharding.device_put(job.state)
    frozen = tuple(sharding.device_put(tree) for tree in training.frozen)
    step_fn = sharding.compile(training.step_fn, state)
    placed = replace(
        training,
        step_fn=lambda state, step, batch: step_fn(state, *frozen, step, batch),
        batch_fn=sharding.shard_batches(training.batch_fn),
        evaluate=lambda state: training.evaluate(state, *frozen),
        frozen=(),
    )
    return state, placed


def fit(
    workdir: str | Path,
    state: Any,
    training: Training,
    observers: Sequence[Observer] = (),
) -> tuple[Any, Metrics]:
    """Trains a model and returns its parameters at the step that is kept.

    A killed run that is started again resumes from its last saved state and writes the
    same `metrics.jsonl` as an uninterrupted run. SIGINT and SIGTERM end the step, save
    the state and are then raised.

    Args:
      workdir: folder of `state/`, `best/` and `metrics.jsonl`.
      state: initial pytree of arrays.
      training: functions and settings, without frozen arrays.
      observers: functions that are called with every event.

    Returns:
      `training.result(state)` at the lowest "heldout_loss", or at the last step if
      `config.keep` is "last", and the metrics of that step with "step" and "seconds"
      (of the whole training, over all its runs).

    Raises:
      NonFiniteError: loss or weights became NaN or infinite; they are not saved.
      CheckpointError: `workdir` holds the state of another training.
      ConfigError: the saved training cannot continue with `training.config`; see
        `train.progress`.
      DataError: `metrics.jsonl` cannot be written.
    """
    workdir, config = Path(workdir), training.config
    workdir.mkdir(parents=True, exist_ok=True)
    log, saved = workdir / "metrics.jsonl", workdir / "state"
    progress = load_progress(workdir, config, training.fingerprint, training.part)
    first, best = progress["step"], None
    if first:
        state = load_state(saved, state)
        best = load_best_metrics(workdir, training.fingerprint)
    truncate_log(log, first)

    began = time.perf_counter() - progress["seconds"]
    last_save = time.perf_counter()
    bar = tqdm(total=config.steps, initial=first, desc=training.part, mininterval=1)

    def event(step, metrics, params=None):
        seconds = time.perf_counter() - began
        return TrainingEvent(
            training.part, workdir, step, config.steps, seconds, metrics, params
        )

    with (
        open(log, "a", encoding="utf-8") as lines,
        stop_requests() as stop,
        bar,
    ):
        for step in range(first, config.steps):
            batch = training.batch_fn(step)
            state, metrics = training.step_fn(state, np.int32(step), batch)
            done = step + 1
            due = partial(_due, done, config.steps)
            bar.update()
            late = time.perf_counter() - last_save > SAVE_SECONDS
            evaluating = due(config.evaluate_every)
            stopping = bool(stop.signal)  # a later signal ends the next step
            saving = due(config.save_every) or late or stopping
            if due(config.log_every) or evaluating or saving:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                checked = state if evaluating or saving else ()
                _check(values["loss"], checked, done, progress["step"])
            if due(config.log_every):
                _write(lines, {"step": done, **values})
                bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
                notify(observers, event(done, values))
            if evaluating:
                values = _evaluate(training, state, done, progress["step"])
                _write(lines, values)
                last = config.keep == "last"
                if not best or last or values["heldout_loss"] < best["heldout_loss"]:
                    best = values
                    _save_best(workdir, training, state, best)
            if saving:
                progress.update(step=done, seconds=time.perf_counter() - began)
                save_state(saved, state, {PROGRESS: json.dumps(progress)})
                last_save = time.perf_counter()
            if evaluating:
                params = jax.tree.map(jnp.copy, training.result(state))
                notify(observers, event(done, values, params))
            if stopping:
                tqdm.write(
                    f"{training.part} stopped and saved at step {done} of "
                    f"{config.steps}; the same command resumes it",
                    file=sys.stderr,
                )
                stop.raise_error()
        if stop.signal:  # during the last step
            stop.raise_error()
    if best is None:
        raise CheckpointError(
            f"'{workdir / 'best'}' is missing; remove '{workdir}' and train again"
        )
    result = load_state(workdir / "best", jax.eval_shape(training.result, state))
    return result, {**best, "seconds": progress["seconds"]}


def _due(done: int, steps: int, every: int) -> bool:
    """Whether something that happens every few steps, and at the end, happens now."""
    return done % every == 0 or done == steps


def _evaluate(training: Training, state: Any, step: int, saved_step: int) -> Metrics:
    """Held-out metrics with the step, printed as one line."""
    values = training.evaluate(state)
    if np.isnan(values["heldout_loss"]):
        raise _not_finite("the held-out loss is nan", step, saved_step)
    text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    tqdm.write(f"{training.part} step {step}: {text}", file=sys.stderr)
    return {"step": step, **values}


def _save_best(workdir: Path, training: Training, state: Any, metrics: Metrics):
    """Saves the parameters that are the result up to now."""
    note = {"fingerprint": training.fingerprint, "metrics": metrics}
    files = {METRICS: json.dumps(note)}
    save_state(workdir / "best", training.result(state), files)


def _check(loss: float, state: Any, step: int, saved_step: int) -> None:
    """Raises `NonFiniteError` if the loss, or weights to be saved, are not finite."""
    if not np.isfinite(loss):
        raise _not_finite(f"the training loss is {loss}", step, saved_step)
    if not _finite(state):
        raise _not_finite("weights are NaN or infinite", step, saved_step)


@jax.jit
def _finite(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in floats], bool))


def _not_finite(reason: str, step: int, saved_step: int) -> NonFiniteError:
    again = "starts from the beginning"
    if saved_step:
        again = f"resumes from step {saved_step}"
    return NonFiniteError(
        f"{reason} at step {step}; lower learning_rate (in the preset, or with --set) "
        f"and run the same command again: it {again}"
    )


def _write(lines, record: dict[str, Any]) -> None:
    try:
        lines.write(json.dumps(record) + "\n")
        lines.flush()
    except OSError as error:
        raise DataError(f"cannot write '{lines.name}': {error.strerror}") from None
