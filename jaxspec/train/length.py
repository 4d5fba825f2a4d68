"""Length of a training from the time that it may take."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jaxspec.io.writing import write_file
from jaxspec.train.experiment import Experiment, with_training
from jaxspec.train.loop import TrainingJob, place
from jaxspec.train.sharding import TrainSharding

PLAN = "plan.json"
# Steps that are timed after the one that compiles.
_TIMED = 3
# Share of the time that steps take; evaluating, saving and samples take the rest.
_STEP_SHARE = 0.8
_FEWEST_STEPS = 20
# Most evaluations of a training; one for every 50 steps of a short one.
EVALUATIONS = 8


def with_length(
    experiment: Experiment,
    part: str,
    folder: Path,
    make_job: Callable[[Experiment], TrainingJob],
    *,
    seconds: float | None,
    sharding: TrainSharding,
    preparation: Callable[[], float] = lambda: 0.0,
) -> tuple[Experiment, TrainingJob]:
    """Prepares a training whose number of steps follows from the time it may take.

    The first start measures a few steps and writes the number to `plan.json`, which
    later starts read once a state has been saved: a resumed training has the same steps
    and the same schedule.

    Args:
      experiment: settings, with the number of steps if `seconds` is None.
      part: name of the part.
      folder: folder of the part.
      make_job: function from an experiment to the part's training.
      seconds: time to train for, in seconds, which gives at least 20 steps; None to
        keep the experiment's steps.
      sharding: devices of the training.
      preparation: function that measures the time per step that preparing its data
        takes, in seconds.

    Returns:
      The experiment with its number of steps, and the training.
    """
    file = folder / PLAN
    if seconds is None:
        if file.is_file():  # later starts without a number continue with this one
            _write_plan(file, getattr(experiment, f"train_{part}").steps)
        return experiment, make_job(experiment)
    if file.is_file() and (folder / "state").is_dir():
        steps = int(json.loads(file.read_bytes())["steps"])
        print(f"{part}: {steps} steps, as at its first start", file=sys.stderr)
    else:
        short = with_schedule(experiment, part, _TIMED + 1)
        began = time.perf_counter()
        per_step = seconds_per_step(make_job(short), sharding) + preparation()
        seconds -= time.perf_counter() - began
        steps = max(int(seconds * _STEP_SHARE / per_step), _FEWEST_STEPS)
        steps = min(steps, getattr(experiment, f"train_{part}").steps)
        duration = _duration(steps * per_step / _STEP_SHARE)
        print(f"{part}: {steps} steps, about {duration}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        _write_plan(file, steps)
    experiment = with_schedule(experiment, part, steps)
    return experiment, make_job(experiment)


def _duration(seconds: float) -> str:
    """Formats a time, in seconds or minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes"


def _write_plan(file: Path, steps: int) -> None:
    write_file(file, json.dumps({"steps": steps}).encode())


def with_schedule(experiment: Experiment, part: str, steps: int) -> Experiment:
    """The experiment with a number of steps, and intervals that suit it."""
    training = getattr(experiment, f"train_{part}")
    # A drafter's evaluation generates images, which takes as long as many steps.
    every = -(-steps // min(max(steps // 50, 1), EVALUATIONS))
    training = replace(
        training,
        steps=steps,
        warmup=min(training.warmup, steps // 10),
        ema=min(training.ema, 1 - 10 / max(steps, 20)),
        evaluate_every=every,
        save_every=every,
    )
    return with_training(experiment, part, training)


def seconds_per_step(job: TrainingJob, sharding: TrainSharding) -> float:
    """Time of one step in seconds, without compilation: the median of three."""
    state, training = place(job, sharding)
    times = []
    for step in range(1 + _TIMED):
        began = time.perf_counter()
        batch = training.batch_fn(step)
        state, metrics = training.step_fn(state, np.int32(step), batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))
