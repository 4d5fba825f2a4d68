"""Training of the parts of an experiment, from data to loadable checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from jaxspec.checkpoint import Checkpoint, checkpoint_of, load_checkpoint, save
from jaxspec.data.dataset import ImageDataset, Sources
from jaxspec.data.image_tokens import Sequences, TokenSource, encode_source
from jaxspec.data.source import ImageSource
from jaxspec.data.text import TextSource
from jaxspec.data.tfds_images import tfds_images
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.pipeline.bundle import load_prior
from jaxspec.sharding.device import device_name
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.card import model_card
from jaxspec.train.classifier import classifier_job
from jaxspec.train.drafter import drafter_job
from jaxspec.train.events import Observer
from jaxspec.train.experiment import HELDOUT, Experiment
from jaxspec.train.length import with_length
from jaxspec.train.loop import TrainingJob, run_job
from jaxspec.train.monitor import default_observers
from jaxspec.train.prior import prior_job
from jaxspec.train.self_generated import (
    seconds_per_sequence,
    self_generated_source,
)
from jaxspec.train.sharding import ONE_DEVICE, TrainSharding
from jaxspec.train.tokenizer import tokenizer_job
from jaxspec.train.workdir import lock_workdir

# Times that a training reads each sequence that its target generated for it.
READS = 3


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
    sharding: TrainSharding = ONE_DEVICE
    seconds: float | None = None
    command: str = ""
    observers: tuple[Observer, ...] = ()

    @property
    def parts(self) -> Path:
        """Folder of the parts trained before."""
        return checkpoint_of(self.bundle or self.workdir / "checkpoint")


def train_part(experiment: Experiment, part: str, run: TrainingRun) -> Path:
    """Trains a part, or resumes its training, and returns the checkpoint's folder.

    Args:
      experiment: data, configurations and training settings.
      part: "tokenizer", "prior", "drafter" or "classifier".
      run: folders, data, devices and length.

    Raises:
      CheckpointError: a part that must be trained before is missing, or another process
        trains in this folder.
      ConfigError: the experiment has no such part, or does not fit the data.
      DataError: the data cannot be read or downloaded.
    """
    _check_part(experiment, part, run.parts)
    with lock_workdir(run.workdir):
        return _train_part(experiment, part, run)


def _train_part(experiment: Experiment, part: str, run: TrainingRun) -> Path:
    images = _images_of(experiment, part, run)
    folder = run.workdir / part
    experiment, job = with_length(
        experiment,
        part,
        folder,
        _job_maker(part, images, run),
        seconds=run.seconds,
        sharding=run.sharding,
        preparation=_preparation(experiment, part, run),
    )
    observers = default_observers(experiment, part, images, run.parts)
    result = run_job(job, folder, run.sharding, (*observers, *run.observers))
    if images and images[0].class_names and part in ("prior", "classifier"):
        metadata = {**result.metadata, "class_names": images[0].class_names}
        result = replace(result, metadata=metadata)
    path = run.workdir / "checkpoint" / part
    return _finish(experiment, part, result, run.command, path)


def _job_maker(
    part: str, images: Sources | None, run: TrainingRun
) -> Callable[[Experiment], TrainingJob]:
    """Function from an experiment to the training of a part."""
    start = None
    if run.start is not None:
        start = load_checkpoint(checkpoint_of(run.start, part))
    if part in ("tokenizer", "classifier"):
        assert images is not None  # checked by `_check_part`
        make = {"tokenizer": tokenizer_job, "classifier": classifier_job}[part]
        source, heldout = images
        return lambda experiment: make(experiment, source, heldout, start)
    if part == "prior":
        return lambda experiment: prior_job(
            experiment, *_sequences(experiment, images, run), start
        )
    prior = load_prior(run.parts / "prior")

    def make_drafter_job(experiment: Experiment) -> TrainingJob:
        if experiment.train_drafter.self_generated:
            sequences = _self_generated(experiment, prior, run.workdir)
        else:
            sequences = _sequences(experiment, images, run)
        return drafter_job(
            experiment,
            prior,
            *sequences,
            run.workdir / part,
            start,
            measured=run.sharding.mesh is None,
        )

    return make_drafter_job


def _preparation(
    experiment: Experiment, part: str, run: TrainingRun
) -> Callable[[], float]:
    """Function that measures the seconds per step in which sequences are generated."""
    training = experiment.train_drafter
    if part != "drafter" or not training.self_generated:
        return lambda: 0.0

    def measure() -> float:
        prior = load_prior(run.parts / "prior")
        seconds = seconds_per_sequence(prior, training.max_cfg_scale)
        return seconds * training.batch / READS

    return measure


def _check_part(experiment: Experiment, part: str, bundle: Path) -> None:
    """Checks that a part can be trained, and that a bundle has those before it."""
    text = experiment.text_file is not None
    if part == "drafter" and experiment.drafter is None:
        raise ConfigError(f"{experiment.name} has no drafter to train")
    if text and part not in ("prior", "drafter"):
        raise ConfigError(f"text has no {part}; train its prior, then a drafter")
    needed = {"prior": ["tokenizer"], "drafter": ["tokenizer", "prior"]}.get(part, [])
    for earlier in needed[text:]:
        if not (bundle / earlier).is_dir():
            raise CheckpointError(
                f"'{bundle / earlier}' is missing; run `jaxspec train {earlier}` with "
                "this --workdir first, or name a bundle with --checkpoint"
            )


def _images_of(experiment: Experiment, part: str, run: TrainingRun) -> Sources | None:
    """Training images and held-out images, if the part reads any.

    Raises:
      ConfigError: the data has more classes than the prior.
    """
    generated = part == "drafter" and experiment.train_drafter.self_generated
    if experiment.text_file is not None or generated:
        return None
    data, tokenizer = experiment.data, experiment.tokenizer
    assert tokenizer is not None  # images, not text
    if run.images is not None:
        images = run.images.open(tokenizer.image_size)
    else:
        train, heldout = (
            tfds_images(
                data.name, split, tokenizer.image_size, run.data_dir, run.manual_dir
            )
            for split in (data.train_split, data.heldout_split)
        )
        images = train, heldout
    if part in ("prior", "drafter"):
        _check_classes(experiment, images)
    return images


def _check_classes(experiment: Experiment, images: Sources) -> None:
    """Checks before the first step that every label has a class of the prior.

    The embedding after the last class is the unconditional one, which labels beyond the
    classes would train.
    """
    most = max(int(source.labels.max()) for source in images) + 1
    count = max(most, *(len(source.class_names) for source in images))
    classes = experiment.prior.classes
    if experiment.prior.condition == "class" and count > classes:
        raise ConfigError(
            f"the data has {count} classes and the prior of {experiment.name} "
            f"{classes}; set prior.classes={count}"
        )


def _sequences(
    experiment: Experiment, images: Sources | None, run: TrainingRun
) -> tuple[Sequences, Sequences]:
    """Training and held-out sequences of the data."""
    if images is None:
        return _text_windows(experiment, run.manual_dir or run.data_dir)
    return _image_tokens(experiment, images, run)


def _image_tokens(
    experiment: Experiment,
    images: tuple[ImageSource, ImageSource],
    run: TrainingRun,
) -> tuple[TokenSource, TokenSource]:
    """Tokens of the training images and the held-out images, encoded once."""
    tokenizer = load_checkpoint(run.parts / "tokenizer", "tokenizer")
    data = experiment.data
    splits = (data.train_split, data.heldout_split)
    train, heldout = (
        encode_source(
            Tokenizer(tokenizer.config),
            tokenizer.params,
            source,
            name=f"{data.name}-{split}",
            flips=data.flips and source is images[0],
            cache_dir=run.workdir / "codes",
        )
        for source, split in zip(images, splits, strict=True)
    )
    return train, heldout


def _text_windows(
    experiment: Experiment, folder: Path
) -> tuple[TextSource, TextSource]:
    """Windows of the training text and of the held-out text."""
    file, length = folder / str(experiment.text_file), experiment.prior.sequence_length
    train, held = (TextSource(file, length, heldout=held) for held in (False, True))
    return train, held


def _self_generated(
    experiment: Experiment, prior: Checkpoint, workdir: Path
) -> tuple[TokenSource, TokenSource]:
    """Training and held-out sequences that the target generates.

    A short training gets so many that it reads each of them `READS` times.
    """
    training = experiment.train_drafter
    enough = max(training.steps * training.batch // READS, training.batch)
    heldout = max(min(HELDOUT["drafter"], enough), training.batch)
    train, held = (
        self_generated_source(
            prior,
            count,
            max_cfg_scale=training.max_cfg_scale,
            seed=seed,
            cache_dir=workdir / "codes",
        )
        for count, seed in (
            (min(training.self_generated, enough), training.seed),
            (heldout, training.seed + 1),
        )
    )
    return train, held


def _finish(
    experiment: Experiment, part: str, result: Checkpoint, command: str, path: Path
) -> Path:
    """Writes the checkpoint with its model card."""
    data = experiment.data
    metadata = {
        "preset": experiment.name,
        "data": data.credit or data.name,
        "license": data.license,
        "command": command,
        "device": device_name(),
        "jax": jax.__version__,
        **result.metadata,
    }
    result = replace(result, metadata=metadata)
    save(path, result, {"README.md": model_card(part, result, experiment)})
    return path
