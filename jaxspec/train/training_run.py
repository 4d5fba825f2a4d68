"""Folders, data, devices and length of a training."""

from dataclasses import dataclass
from pathlib import Path

from jaxspec.checkpoint import checkpoint_of
from jaxspec.data.dataset import ImageDataset
from jaxspec.train.events import Observer
from jaxspec.train.sharding import ONE_DEVICE, TrainSharding


@dataclass(frozen=True)
class TrainingRun:
    """Folders, data, devices and length of a training.

    Attributes:
      workdir: folder of all parts' states, and of their checkpoints in `checkpoint/`.
      images: images to train on; None for the data set of the experiment.
      data_dir: folder of prepared tfds data.
      manual_dir: folder of files that tfds cannot download, or of a text.
      bundle: folder of the parts trained before; None for `workdir/checkpoint`.
      start: folder of a trained part whose parameters are the initial ones; None for
        random parameters.
      encoder: folder of a matcher or a text encoder, from which the text encoder of a
        prior starts; None for the one beside `start`, or random parameters.
      sharding: devices of the training's arrays; the result is the same up to rounding.
      seconds: time to train for, which replaces the experiment's number of steps when
        the training starts; None for the number of steps.
      command: command line to record in the checkpoint.
      observers: functions that are called with every `TrainingEvent`.
    """

    workdir: Path
    images: ImageDataset | None = None
    data_dir: Path = Path("data")
    manual_dir: Path | None = None
    bundle: Path | None = None
    start: Path | None = None
    encoder: Path | None = None
    sharding: TrainSharding = ONE_DEVICE
    seconds: float | None = None
    command: str = ""
    observers: tuple[Observer, ...] = ()

    @property
    def parts(self) -> Path:
        """Folder of the parts trained before."""
        return checkpoint_of(self.bundle or self.workdir / "checkpoint")
