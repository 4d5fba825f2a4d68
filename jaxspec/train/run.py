"""Training of one part of an experiment, from data to a loadable checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from jaxspec.checkpoint import Checkpoint, load_checkpoint, save
from jaxspec.data.image_tokens import Sequences, TokenSource, encode_source
from jaxspec.data.source import ImageSource
from jaxspec.data.text import TextSource
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.pipeline.bundle import load_prior
from jaxspec.sharding.device import device_name
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.card import model_card
from jaxspec.train.classifier import train_classifier
from jaxspec.train.drafter import train_drafter
from jaxspec.train.experiment import HELDOUT, Experiment
from jaxspec.train.prior import train_prior
from jaxspec.train.self_generated import self_generated_source
from jaxspec.train.sharding import ONE_DEVICE, TrainSharding
from jaxspec.train.tokenizer import train_tokenizer


def train_part(
    experiment: Experiment,
    part: str,
    workdir: Path,
    data_dir: Path,
    manual_dir: Path | None,
    command: str,
    bundle: Path | None = None,
    start: Path | None = None,
    sharding: TrainSharding = ONE_DEVICE,
) -> Path:
    """Trains a part and returns the checkpoint's folder.

    Args:
      experiment: data, configurations and training settings.
      part: "tokenizer", "prior", "drafter" or "classifier".
      workdir: folder of all parts' states, and of their checkpoints in `checkpoint/`.
      data_dir: folder of prepared tfds data.
      manual_dir: folder of files that tfds cannot download, or of a text.
      command: command line to record in the checkpoint.
      bundle: folder of the parts trained before; None for `workdir/checkpoint`.
      start: folder of a trained prior or drafter whose parameters are the initial ones;
        None for random parameters.
      sharding: devices of the training's arrays; the result is the same up to rounding.

    Raises:
      CheckpointError: a part that must be trained before is missing.
      ConfigError: the experiment has no such part.
      DataError: the data cannot be read or downloaded.
    """
    bundle = bundle or workdir / "checkpoint"
    _check_part(experiment, part, bundle)
    start_checkpoint = load_checkpoint(start) if start is not None else None
    if part in ("prior", "drafter"):
        sources, class_names = _sequences(
            experiment, part, bundle, workdir, data_dir, manual_dir
        )
        train, heldout = sources
        options = workdir / part, start_checkpoint, sharding
        if part == "prior":
            result = train_prior(experiment, train, heldout, *options)
        else:
            prior = load_prior(bundle / "prior")
            result = train_drafter(experiment, prior, train, heldout, *options)
    else:
        train, heldout = _images(experiment, data_dir, manual_dir)
        trainer = {"tokenizer": train_tokenizer, "classifier": train_classifier}[part]
        result = trainer(experiment, train, heldout, workdir / part, sharding)
        class_names = train.class_names
    if class_names is not None and part in ("prior", "classifier"):
        metadata = {**result.metadata, "class_names": class_names}
        result = replace(result, metadata=metadata)
    return _finish(experiment, part, result, command, workdir / "checkpoint" / part)


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


def _sequences(
    experiment: Experiment,
    part: str,
    bundle: Path,
    workdir: Path,
    data_dir: Path,
    manual_dir: Path | None,
) -> tuple[Sequence[Sequences], list[str] | None]:
    """Training and held-out sequences, and the class names of those of images."""
    if part == "drafter" and experiment.train_drafter.self_generated:
        return _self_generated(experiment, bundle, workdir), None
    if experiment.text_file is not None:
        return _text_windows(experiment, manual_dir or data_dir), None
    images = _images(experiment, data_dir, manual_dir)
    tokens = _image_tokens(experiment, bundle, workdir, images)
    return tokens, images[0].class_names


def _images(
    experiment: Experiment, data_dir: Path, manual_dir: Path | None
) -> tuple[ImageSource, ImageSource]:
    """Training images and held-out images."""
    data, tokenizer = experiment.data, experiment.tokenizer
    assert tokenizer is not None  # images, not text
    train, heldout = (
        ImageSource(data.name, split, tokenizer.image_size, data_dir, manual_dir)
        for split in (data.train_split, data.heldout_split)
    )
    return train, heldout


def _image_tokens(
    experiment: Experiment,
    bundle: Path,
    workdir: Path,
    images: tuple[ImageSource, ImageSource],
) -> list[TokenSource]:
    """Tokens of the training images and the held-out images, encoded once."""
    tokenizer = load_checkpoint(bundle / "tokenizer", "tokenizer")
    data = experiment.data
    splits = (data.train_split, data.heldout_split)
    return [
        encode_source(
            Tokenizer(tokenizer.config),
            tokenizer.params,
            source,
            name=f"{data.name}-{split}",
            flips=data.flips and source is images[0],
            cache_dir=workdir / "codes",
        )
        for source, split in zip(images, splits, strict=True)
    ]


def _text_windows(experiment: Experiment, folder: Path) -> list[TextSource]:
    """Windows of the training text and of the held-out text."""
    file, length = folder / str(experiment.text_file), experiment.prior.sequence_length
    return [TextSource(file, length, heldout=heldout) for heldout in (False, True)]


def _self_generated(
    experiment: Experiment, bundle: Path, workdir: Path
) -> list[TokenSource]:
    """Training and held-out sequences that the target generates."""
    prior, training = load_prior(bundle / "prior"), experiment.train_drafter
    return [
        self_generated_source(
            prior,
            count,
            max_cfg_scale=training.max_cfg_scale,
            seed=seed,
            cache_dir=workdir / "codes",
        )
        for count, seed in (
            (training.self_generated, training.seed),
            (HELDOUT["drafter"], training.seed + 1),
        )
    ]


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
