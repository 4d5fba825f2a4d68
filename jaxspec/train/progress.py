"""Progress of a training, saved with its state, and checks before it resumes."""

import json
import sys
from pathlib import Path
from typing import Any

from jaxspec.checkpoint import recover
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.io.writing import write_file
from jaxspec.train.identity import MAY_CHANGE
from jaxspec.train.settings import TrainingConfig

PROGRESS, METRICS = "progress.json", "metrics.json"


def load_progress(
    workdir: Path, config: TrainingConfig, fingerprint: str, label: str
) -> dict[str, Any]:
    """Progress of the training saved in a folder, or of a new one.

    Prints one line to stderr with the settings that differ from those of the saved run.

    Args:
      workdir: folder of the training, with `state/` if it has been saved.
      config: settings of the steps to come.
      fingerprint: identity of the training; see `train.identity.fingerprint`.
      label: name of the part.

    Returns:
      A dict with "step", "seconds", "fingerprint" and "settings".

    Raises:
      CheckpointError: the saved state is of another training, or damaged.
      ConfigError: the saved training has taken more steps than `config.steps`, or has
        finished and `config` has other settings.
    """
    settings = {name: getattr(config, name) for name in MAY_CHANGE}
    new = {
        "step": 0,
        "seconds": 0.0,
        "fingerprint": fingerprint,
        "settings": settings,
    }
    saved = recover(workdir / "state")
    if not saved.is_dir():
        return new
    try:
        text = (saved / PROGRESS).read_bytes()
        progress: dict[str, Any] | None = {n: json.loads(text)[n] for n in new}
    except (OSError, ValueError, KeyError, TypeError):
        progress = None
    if progress is None or progress["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"'{workdir}' holds a training with another preset, of an earlier part "
            "that has changed, or of an earlier version; remove it or choose another "
            "--out"
        )
    # States of earlier versions do not have all settings.
    step, before = progress["step"], {"keep": "best", **progress["settings"]}
    changed = ", ".join(
        f"{name} {value} (was {before.get(name)})"
        for name, value in settings.items()
        if before.get(name) != value
    )
    if step > config.steps:
        raise ConfigError(
            f"'{workdir}' holds a training that has taken {step} steps, more than "
            f"{config.steps}; set more --steps or choose another --out"
        )
    if changed and step == config.steps:
        decisive = [name for name in settings if not name.endswith("_every")]
        if all(before.get(name) == settings[name] for name in decisive):
            return {**progress, "settings": settings}
        raise ConfigError(
            f"'{workdir}' holds a training that finished after {step} steps, so these "
            f"settings cannot change: {changed}; set more --steps or choose another "
            "--out"
        )
    if changed:
        print(f"{label} resumes at step {step} with {changed}", file=sys.stderr)
    return {**progress, "settings": settings}


def load_best_metrics(workdir: Path, fingerprint: str) -> dict[str, Any] | None:
    """Step and metrics of the checkpoint in `best/`; None if this training has none."""
    file = recover(workdir / "best") / METRICS
    if not file.is_file():
        return None
    note = json.loads(file.read_bytes())
    return note["metrics"] if note["fingerprint"] == fingerprint else None


def truncate_log(log: Path, step: int) -> None:
    """Drops the lines of steps after `step`, which will be taken again."""
    if log.exists():
        lines = [
            line
            for line in log.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n") and json.loads(line)["step"] <= step
        ]
        write_file(log, b"".join(lines))
