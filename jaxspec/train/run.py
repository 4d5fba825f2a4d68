"""Trains one part of an experiment from data to a loadable checkpoint."""

from dataclasses import replace
from pathlib import Path

import jax

from jaxspec.checkpoint import load, save
from jaxspec.data.codes import encode_source
from jaxspec.data.source import ImageSource
from jaxspec.device import device_name
from jaxspec.errors import CheckpointError
from jaxspec.models.tokenizer import Tokenizer
from jaxspec.train.card import model_card
from jaxspec.train.classifier import train_classifier
from jaxspec.train.drafter import HELDOUT, train_drafter
from jaxspec.train.experiment import Experiment
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
) -> Path:
    """Trains a part and returns the checkpoint's folder.

    Parts are "tokenizer", "prior", "drafter" and "classifier". Earlier ones are read
    from `bundle`, or from what `workdir` holds. A drafter that learns from what its
    target draws needs no data. Prior and drafter may go on from `start`.

    Raises:
      CheckpointError: an earlier part is missing from `workdir`.
      DataError: the data cannot be had.
    """
    data, side = experiment.data, experiment.tokenizer.image_size
    done = workdir / "checkpoint"
    given = bundle or done
    for earlier in {"prior": ["tokenizer"], "drafter": ["tokenizer", "prior"]}.get(
        part, []
    ):
        if not (given / earlier).is_dir():
            raise CheckpointError(
                f"'{given / earlier}' is missing; run `jaxspec train {earlier}` with "
                "this --workdir first, or name a bundle with --checkpoint"
            )
    training = experiment.train_drafter
    begun = load(start) if start is not None else None
    if part == "drafter" and training.drawn:
        prior, folder = load(given / "prior", "prior"), workdir / "codes"
        codes, heldout_codes = (
            draw_source(
                prior, count, guidance=training.guidance, seed=seed, cache_dir=folder
            )
            for count, seed in (
                (training.drawn, training.seed),
                (HELDOUT, training.seed + 1),
            )
        )
        result = train_drafter(
            experiment, prior, codes, heldout_codes, workdir / part, begun
        )
        return _finish(experiment, part, result, command, done)
    splits = (data.train_split, data.heldout_split)
    source, heldout = (
        ImageSource(data.name, split, side, data_dir, manual_dir) for split in splits
    )
    if part == "tokenizer":
        result = train_tokenizer(experiment, source, heldout, workdir / part)
    elif part == "classifier":
        result = train_classifier(experiment, source, heldout, workdir / part)
    else:
        tokenizer = load(given / "tokenizer", "tokenizer")
        codes, heldout_codes = (
            encode_source(
                Tokenizer(tokenizer.config),
                tokenizer.params,
                pictures,
                name=f"{data.name}-{split}",
                flips=data.flips and pictures is source,
                cache_dir=workdir / "codes",
            )
            for pictures, split in zip((source, heldout), splits, strict=True)
        )
        if part == "prior":
            result = train_prior(
                experiment, codes, heldout_codes, workdir / part, begun
            )
        else:
            prior = load(given / "prior", "prior")
            result = train_drafter(
                experiment, prior, codes, heldout_codes, workdir / part, begun
            )
    if part in ("prior", "classifier"):
        about = {**result.about, "class_names": source.class_names}
        result = replace(result, about=about)
    return _finish(experiment, part, result, command, done)


def _finish(experiment, part, result, command, done: Path) -> Path:
    """Writes the checkpoint with its card."""
    data = experiment.data
    about = {
        "preset": experiment.name,
        "data": data.credit or data.name,
        "licence": data.licence,
        "command": command,
        "device": device_name(),
        "jax": jax.__version__,
        **result.about,
    }
    result = replace(result, about=about)
    save(done / part, result, {"README.md": model_card(part, result, experiment)})
    return done / part
