"""Training of tokenizer, prior and drafter, from images to a bundle."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxspec.checkpoint import read_config
from jaxspec.data.dataset import open_dataset
from jaxspec.data.folder_images import OnBadImage
from jaxspec.errors import ConfigError
from jaxspec.train.events import Observer
from jaxspec.train.experiment import Experiment
from jaxspec.train.from_images import PARTS, SHARES, describe, experiment_for
from jaxspec.train.run import train_part
from jaxspec.train.training_run import TrainingRun


def train_all(
    images: str | Path | Iterable[tuple[Any, Any]],
    workdir: str | Path,
    *,
    minutes: float = 60.0,
    settings: Sequence[str] = (),
    observers: Sequence[Observer] = (),
    on_bad: OnBadImage = "skip",
    data_dir: str | Path = "data",
) -> Path:
    """Trains tokenizer, prior and drafter on images, as `jaxspec train all` does.

    Sizes follow from the images and the device, see `experiment_for`. The same call
    resumes a stopped training.

    Args:
      images: folder, "tfds:NAME", or pairs of an image and its class, see
        `open_dataset`.
      workdir: folder of states, curves and samples, and of the result.
      minutes: time that the three trainings take together.
      settings: fields to change, such as "prior.layers=8", see `with_overrides`.
      observers: functions that are called with every `TrainingEvent`. One that raises
        `KeyboardInterrupt` stops the training, which the same call resumes.
      on_bad: treatment of damaged files of a folder, "skip" or "stop".
      data_dir: folder of prepared tfds data.

    Returns:
      The bundle, which `load_pipeline` reads.

    Raises:
      CheckpointError: another process trains in this folder, or it holds another
        training.
      ConfigError: settings and images do not go together, or the time is too short.
      DataError: the images cannot be used.
    """
    dataset = open_dataset(images, on_bad=on_bad, data_dir=data_dir)
    existing = existing_configs(Path(workdir) / "checkpoint")
    experiment = experiment_for(dataset, settings=settings, **existing)
    print(describe(experiment, dataset), file=sys.stderr)
    run = TrainingRun(
        Path(workdir),
        images=dataset,
        data_dir=Path(data_dir),
        command="jaxspec.train.train_all",
        observers=tuple(observers),
    )
    return train_parts(experiment, run, minutes)


def train_parts(
    experiment: Experiment, run: TrainingRun, minutes: float | None
) -> Path:
    """Trains all parts that an experiment has, and returns the bundle's folder.

    Args:
      experiment: data, configurations and training settings.
      run: folders, data and devices.
      minutes: time that the trainings take together; None for the numbers of steps of
        the experiment.

    Raises:
      ConfigError: `minutes` is not positive.
    """
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"minutes={minutes} must be positive")
    began, parts = time.monotonic(), _parts_of(experiment, run.workdir)
    for i, part in enumerate(parts):
        seconds = None
        if minutes is not None:
            left = minutes * 60 - (time.monotonic() - began)
            share = SHARES[part] / sum(SHARES[p] for p in parts[i:])
            seconds = max(left, 0.0) * share
        train_part(experiment, part, replace(run, seconds=seconds))
    return run.workdir / "checkpoint"


def existing_configs(bundle: Path) -> dict[str, Any]:
    """Configurations of the parts in a bundle, as arguments of `experiment_for`."""
    return {
        part: read_config(bundle / part).config
        for part in ("tokenizer", "prior", "text_encoder")
        if (bundle / part).is_dir()
    }


def _parts_of(experiment: Experiment, workdir: Path) -> list[str]:
    """Parts that an experiment trains, in order.

    A part whose checkpoint was put there, as by `jaxspec convert`, is not trained.
    """
    absent = {
        "tokenizer": experiment.tokenizer is None,
        "drafter": experiment.drafter is None,
    }
    given = [
        part
        for part in PARTS
        if (workdir / "checkpoint" / part).is_dir() and not (workdir / part).is_dir()
    ]
    return [part for part in PARTS if not absent.get(part) and part not in given]
