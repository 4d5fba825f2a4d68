"""What a training has done: beside its state on disk, and what may go on from it."""

import json
import sys
from pathlib import Path
from typing import Any

from jaxspec.checkpoint import recover
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.train.experiment import MAY_CHANGE, TrainingConfig
from jaxspec.writing import write_file

PROGRESS, METRICS = "progress.json", "metrics.json"


def begin_or_resume(
    workdir: Path, config: TrainingConfig, fingerprint: str, label: str
) -> dict[str, Any]:
    """The progress of the state in a folder, or that of a training that begins.

    One line on stderr names the settings that differ from those of the earlier run.

    Args:
      workdir: holds `state/` if a training was begun.
      config: the settings from now on.
      fingerprint: see `train.experiment`.
      label: name of the part.

    Returns:
      "step", "seconds", "fingerprint" and "settings".

    Raises:
      CheckpointError: the state is of another training, or damaged.
      ConfigError: the training is past the steps asked for, or is finished and could
        not follow other settings.
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
        found: dict[str, Any] | None = {name: json.loads(text)[name] for name in new}
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found is None or found["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"'{workdir}' holds a training with another preset, of an earlier part "
            "that has changed, or of an earlier version; remove it or choose another "
            "--workdir"
        )
    step, before = found["step"], found["settings"]
    changed = ", ".join(
        f"{name} {value} (was {before.get(name)})"
        for name, value in settings.items()
        if before.get(name) != value
    )
    if step > config.steps:
        raise ConfigError(
            f"'{workdir}' holds a training that has taken {step} steps: ask for more "
            f"than {config.steps}, or choose another --workdir"
        )
    if changed and step == config.steps:
        own = [name for name in settings if not name.endswith("_every")]
        if all(before.get(name) == settings[name] for name in own):
            return {**found, "settings": settings}
        raise ConfigError(
            f"'{workdir}' holds a training that is finished after {step} steps; it "
            f"cannot follow {changed}: ask for more steps, or choose another --workdir"
        )
    if changed:
        print(f"{label} goes on at step {step} with {changed}", file=sys.stderr)
    return {**found, "settings": settings}


def best_of(workdir: Path, fingerprint: str) -> dict[str, Any] | None:
    """Step and metrics of what `best/` holds; None if this training has none."""
    file = recover(workdir / "best") / METRICS
    if not file.is_file():
        return None
    found = json.loads(file.read_bytes())
    return found["metrics"] if found["fingerprint"] == fingerprint else None


def drop_later_lines(log: Path, step: int) -> None:
    """Drops lines of steps that will be taken again."""
    if log.exists():
        kept = [
            line
            for line in log.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n") and json.loads(line)["step"] <= step
        ]
        write_file(log, b"".join(kept))
