"""The training loop that all parts share: logs, resumes, keeps the best."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import load_state, recover, save_state
from jaxspec.errors import CheckpointError, NonFiniteError
from jaxspec.train.experiment import TrainingConfig

Metrics = dict[str, float]


def fit(
    workdir: str | Path,
    config: TrainingConfig,
    state: Any,
    step_fn: Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]],
    batch_fn: Callable[[int], Any],
    evaluate: Callable[[Any], Metrics],
    keep: Callable[[Any], Any],
    label: str,
    fingerprint: str,
) -> tuple[Any, Metrics]:
    """Trains, and returns what was kept at the best held-out loss.

    A killed run that is started again goes on from its last saved state and writes
    the same `metrics.jsonl` as one that never stopped.

    Args:
      workdir: holds `state/`, `best/` and `metrics.jsonl`.
      config: how long, how often.
      state: initial tree of arrays.
      step_fn: `(state, step, batch) -> (state, metrics)`, jitted by the caller.
      batch_fn: the batch of a step, a pure function of the step.
      evaluate: held-out metrics of a state; "heldout_loss" selects.
      keep: the part of a state to return.
      label: name on the progress bar.
      fingerprint: says what is trained on what; a state with another one is refused.

    Returns:
      `keep(state)` where "heldout_loss" was least, and the metrics there with
      "step" and "seconds" (of the whole training, over all its runs).

    Raises:
      NonFiniteError: the loss became NaN or infinite.
      CheckpointError: `workdir` holds the state of another training.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    log = workdir / "metrics.jsonl"
    progress = {"step": 0, "seconds": 0.0, "best": None, "fingerprint": fingerprint}
    saved = recover(workdir / "state")
    if saved.is_dir():
        progress = json.loads((saved / "progress.json").read_text())
        if progress["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"'{workdir}' holds a training with another preset or of an earlier "
                "part that has changed; remove it or choose another --workdir"
            )
        state = load_state(saved, state)
    _truncate(log, progress["step"])

    began = time.perf_counter() - progress["seconds"]
    bar = tqdm(total=config.steps, initial=progress["step"], desc=label, mininterval=1)
    with open(log, "a") as lines, bar:
        for step in range(progress["step"], config.steps):
            state, metrics = step_fn(state, np.int32(step), batch_fn(step))
            done = step + 1
            bar.update()
            if done % config.log_every == 0 or done == config.steps:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                _write(lines, {"step": done, **values})
                bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
                if not np.isfinite(values["loss"]):
                    raise NonFiniteError(
                        f"the training loss is {values['loss']} at step {done}; lower "
                        f"learning_rate and start again from '{saved}'"
                    )
            if done % config.evaluate_every == 0 or done == config.steps:
                values = evaluate(state)
                _write(lines, {"step": done, **values})
                best = progress["best"]
                if best is None or not values["heldout_loss"] >= best["heldout_loss"]:
                    progress["best"] = {"step": done, **values}
                    save_state(workdir / "best", keep(state))
                tqdm.write(
                    f"{label} step {done}: "
                    + ", ".join(f"{k} {v:.4g}" for k, v in values.items()),
                    file=sys.stderr,
                )
            if done % config.save_every == 0 or done == config.steps:
                progress.update(step=done, seconds=time.perf_counter() - began)
                lines.flush()
                note = json.dumps(progress)
                save_state(saved, state, {"progress.json": note})
    assert progress["best"] is not None
    kept = load_state(workdir / "best", jax.eval_shape(keep, state))
    return kept, {**progress["best"], "seconds": progress["seconds"]}


def _write(lines, record: dict[str, Any]) -> None:
    lines.write(json.dumps(record) + "\n")
    lines.flush()


def _truncate(log: Path, step: int) -> None:
    """Drops lines of steps that will be taken again."""
    if log.exists():
        kept = [
            line
            for line in log.read_text().splitlines(keepends=True)
            if line.endswith("\n") and json.loads(line)["step"] <= step
        ]
        fresh = log.with_suffix(".tmp")
        fresh.write_text("".join(kept))
        fresh.replace(log)
