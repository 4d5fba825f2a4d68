"""Trains one part of an experiment from data to a loadable checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from jaxspec.bundle import load_prior
from jaxspec.checkpoint import Checkpoint, load_checkpoint, save
from jaxspec.data.codes import CodeSource, Sequences, encode_source
from jaxspec.data.source import ImageSource
from jaxspec.data.text import TextSource
from jaxspec.device import device_name
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.models.tokenizer import Tokenizer
from jaxspec.train.card import model_card
from jaxspec.train.classifier import train_classifier
from jaxspec.train.drafter import HELDOUT, train_drafter
from jaxspec.train.experiment import Experiment
from jaxspec.train.layout import ONE_DEVICE, Layout
from jaxspec.train.prior import train_prior
from jaxspec.train.self_drawn import draw_source
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
    layout: Layout = ONE_DEVICE,
) -> Path:
    """Trains a part and returns the checkpoint's folder.

    Parts are "tokenizer", "prior", "drafter" and "classifier". Earlier ones are read
    from `bundle`, or from what `workdir` holds. A drafter that learns from what its
    target draws needs no data. Prior and drafter may go on from `start`.
    `layout` says where arrays lie; what is learned does not depend on it.

    Raises:
      CheckpointError: an earlier part is missing.
      ConfigError: the experiment has no such part.
      DataError: the data cannot be had.
    """
    if part == "drafter" and experiment.drafter is None:
        raise ConfigError(f"{experiment.name} has no drafter to train")
    given = bundle or workdir / "checkpoint"
    begun = load_checkpoint(start) if start is not None else None
    text, metadata = experiment.text_file is not None, {}
    sources: Sequence[Sequences]
    needed = {"prior": ["tokenizer"], "drafter": ["tokenizer", "prior"]}.get(part, [])
    for earlier in needed[text:]:
        if not (given / earlier).is_dir():
            raise CheckpointError(
                f"'{given / earlier}' is missing; run `jaxspec train {earlier}` with "
                "this --workdir first, or name a bundle with --checkpoint"
            )
    if part in ("prior", "drafter"):
        if part == "drafter" and experiment.train_drafter.drawn:
            sources = _drawn(experiment, given, workdir)
        elif text:
            sources = _text(experiment, manual_dir or data_dir)
        else:
            images = _images(experiment, data_dir, manual_dir)
            sources = _encoded(experiment, given, workdir, images)
            metadata = {"class_names": images[0].class_names} if part == "prior" else {}
        if part == "prior":
            result = train_prior(
                experiment, sources[0], sources[1], workdir / part, begun, layout
            )
        else:
            prior = load_prior(given / "prior")
            result = train_drafter(
                experiment, prior, sources[0], sources[1], workdir / part, begun, layout
            )
    else:
        if text:
            raise ConfigError(f"text has no {part}; train its prior, then a drafter")
        images = _images(experiment, data_dir, manual_dir)
        train = {"tokenizer": train_tokenizer, "classifier": train_classifier}[part]
        result = train(experiment, *images, workdir / part, layout)
        if part == "classifier":
            metadata = {"class_names": images[0].class_names}
    result = replace(result, metadata={**result.metadata, **metadata})
    return _finish(experiment, part, result, command, workdir / "checkpoint" / part)


def _images(
    experiment: Experiment, data_dir: Path, manual_dir: Path | None
) -> tuple[ImageSource, ImageSource]:
    """Those to learn from, and those held out."""
    data, tokenizer = experiment.data, experiment.tokenizer
    assert tokenizer is not None  # see Experiment
    first, second = (
        ImageSource(data.name, split, tokenizer.image_size, data_dir, manual_dir)
        for split in (data.train_split, data.heldout_split)
    )
    return first, second


def _encoded(
    experiment: Experiment,
    given: Path,
    workdir: Path,
    images: tuple[ImageSource, ImageSource],
) -> list[CodeSource]:
    """Images as codes, encoded once and kept."""
    tokenizer, data = load_checkpoint(given / "tokenizer", "tokenizer"), experiment.data
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


def _text(experiment: Experiment, folder: Path) -> list[TextSource]:
    file, length = folder / str(experiment.text_file), experiment.prior.sequence_length
    return [TextSource(file, length, heldout=held) for held in (False, True)]


def _drawn(experiment: Experiment, given: Path, workdir: Path) -> list[CodeSource]:
    """What the target itself draws."""
    prior, training = load_prior(given / "prior"), experiment.train_drafter
    return [
        draw_source(
            prior,
            count,
            cfg_scale=training.cfg_scale,
            seed=seed,
            cache_dir=workdir / "codes",
        )
        for count, seed in (
            (training.drawn, training.seed),
            (HELDOUT, training.seed + 1),
        )
    ]


def _finish(
    experiment: Experiment, part: str, result: Checkpoint, command: str, path: Path
) -> Path:
    """Writes the checkpoint with its card."""
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
