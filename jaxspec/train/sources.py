"""Images and token sequences of a training, from files or from the target."""

import hashlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jaxspec.checkpoint import (
    Checkpoint,
    checkpoint_of,
    load_checkpoint,
    read_config,
)
from jaxspec.config.token_kinds import same_tokens, tokens_of
from jaxspec.data.dataset import Sources
from jaxspec.data.image_tokens import Sequences, TokenSource, encode_source
from jaxspec.data.source import ImageSource
from jaxspec.data.text import TextSource, byte_windows
from jaxspec.data.tfds_images import tfds_images
from jaxspec.errors import CheckpointError, ConfigError, DataError
from jaxspec.io.text_files import read_text
from jaxspec.io.writing import write_file
from jaxspec.models.t5.model import TextEncoder
from jaxspec.pipeline.bundle import load_tokenizer
from jaxspec.pipeline.captions import TOKENIZER as VOCABULARY
from jaxspec.pipeline.captions import tokenize
from jaxspec.pipeline.orders import in_order_of
from jaxspec.train.answers import answer_sources
from jaxspec.train.experiment import Experiment
from jaxspec.train.matcher import MATCHER
from jaxspec.train.self_generated import class_conditions, self_generated_source
from jaxspec.train.settings import HELDOUT
from jaxspec.train.text_encoder import ENCODER, bound_source, train_vocabulary
from jaxspec.train.training_run import TrainingRun

# Times that a training reads each sequence that its target generated for it.
READS = 3


def open_images(experiment: Experiment, part: str, run: TrainingRun) -> Sources | None:
    """Training images and held-out images, if the part reads any.

    Raises:
      ConfigError: the data has more classes than the prior.
    """
    generated = part == "drafter" and experiment.train_drafter.self_generated
    captioned = experiment.prior.condition == "caption"
    if experiment.text_file is not None or (generated and not captioned):
        return None
    data, tokenizer = experiment.data, experiment.tokenizer
    assert tokenizer is not None  # images, not text
    if run.images is not None:
        images = run.images.open(tokenizer.image_size)
    else:
        split = data.train_split
        if part == MATCHER:
            split = data.matcher_split or split
        train, heldout = (
            tfds_images(
                data.name, split, tokenizer.image_size, run.data_dir, run.manual_dir
            )
            for split in (split, data.heldout_split)
        )
        images = train, heldout
    sampled = part == "tokenizer" and _sampled(experiment)
    if part in ("prior", "drafter") or sampled:
        _check_classes(experiment, images)
    return images


def _sampled(experiment: Experiment) -> bool:
    """Whether a tokenizer is trained on tokens that a model of classes samples."""
    training = experiment.train_tokenizer
    return training is not None and training.generated_tokens > 0


def _check_classes(experiment: Experiment, images: Sources) -> None:
    """Checks before the first step that every label has a class of the prior.

    The embedding after the last class is the unconditional one, which labels beyond the
    classes would train.
    """
    if any(int(source.labels.min()) < 0 for source in images):
        raise DataError(
            f"'{experiment.data.name}' has images without a label (-1); choose another "
            "split"
        )
    most = max(int(source.labels.max()) for source in images) + 1
    count = max(most, *(len(source.class_names) for source in images))
    classes = experiment.prior.classes
    if experiment.prior.condition == "class" and count > classes:
        raise ConfigError(
            f"the data has {count} classes and the prior of {experiment.name} "
            f"{classes}; set prior.classes={count}"
        )


def data_sequences(
    experiment: Experiment, images: Sources | None, run: TrainingRun
) -> tuple[Sequences, Sequences]:
    """Training and held-out sequences of the data, for a prior."""
    if experiment.prompts_file is not None:
        training = experiment.train_drafter
        return answer_sources(
            run.parts,
            Path(experiment.prompts_file),
            training.self_generated,
            seed=training.seed,
            cache_dir=run.workdir / "codes",
        )
    if images is None:
        return _text_windows(experiment, run.manual_dir or run.data_dir)
    vocabulary = _trained_vocabulary(experiment, images[0], run)
    return _image_tokens(experiment, images, run, vocabulary)


def encoded_sequences(
    experiment: Experiment, images: Sources | None, run: TrainingRun
) -> tuple[Sequences, Sequences]:
    """Sequences of the data, with prompts as the trained prior takes them."""
    if images is None or experiment.text_encoder is None:
        return data_sequences(experiment, images, run)
    checkpoint = load_checkpoint(run.parts / ENCODER, ENCODER)
    # On the host, so that a mesh may take its outputs.
    params = jax.device_get(checkpoint.params)
    encoder = TextEncoder(checkpoint.config)
    vocabulary = run.parts / ENCODER / VOCABULARY
    train, heldout = _image_tokens(experiment, images, run, vocabulary)
    return bound_source(encoder, params, train), bound_source(encoder, params, heldout)


def generation_conditions(
    experiment: Experiment, prior: Checkpoint, images: Sources | None, run: TrainingRun
) -> TokenSource:
    """Classes of the prior, or captions of the training images."""
    if experiment.text_encoder is None:
        return class_conditions(prior)
    train, _ = encoded_sequences(experiment, images, run)
    assert isinstance(train, TokenSource)
    return train


def _image_tokens(
    experiment: Experiment, images: Sources, run: TrainingRun, vocabulary: Path
) -> tuple[TokenSource, TokenSource]:
    """Tokens of the training images and the held-out images, encoded once."""
    tokenizer = load_tokenizer(run.parts / "tokenizer")
    if run.bundle is not None:  # the copy beside the prior is in its order
        tokenizer = in_order_of(tokenizer, experiment.prior)
    if getattr(tokenizer.config, "text_length", 0):
        raise ConfigError(
            f"'{run.parts / 'tokenizer'}' decodes with vectors of a text, which models "
            "over its tokens have none of"
        )
    if not same_tokens(experiment.prior, tokenizer.config):
        raise ConfigError(
            f"{experiment.name}: the prior is over {tokens_of(experiment.prior)}, the "
            f"tokenizer in '{run.parts}' makes {tokens_of(tokenizer.config)}"
        )
    data = experiment.data
    splits = (data.train_split, data.heldout_split)
    train, heldout = (
        _with_captions(
            experiment,
            source,
            encode_source(
                tokenizer.model,
                tokenizer.params,
                source,
                name=f"{data.name}-{split}",
                flips=data.flips and source is images[0],
                cache_dir=run.workdir / "codes",
            ),
            vocabulary,
        )
        for source, split in zip(images, splits, strict=True)
    )
    return train, heldout


def _with_captions(
    experiment: Experiment, images: ImageSource, source: TokenSource, file: Path
) -> TokenSource:
    """A source with the tokens of its captions, if the prior reads captions."""
    if experiment.text_encoder is None:
        return source
    captions = tokenize(file, images.captions, experiment.text_encoder.length)
    digest = hashlib.sha256(captions.tobytes()).hexdigest()[:16]
    return replace(source, captions=captions, digest=f"{source.digest}-{digest}")


def caption_tokens(
    experiment: Experiment, images: Sources, source: ImageSource, run: TrainingRun
) -> np.ndarray:
    """Tokens int32 [n, P] of a source's captions, with the matcher's vocabulary.

    Args:
      experiment: configurations.
      images: sources, on whose first one the vocabulary is trained on first use.
      source: images with captions.
      run: folders.

    Raises:
      DataError: the images have no captions.
    """
    assert experiment.text_encoder is not None  # checked before
    if not source.captions:
        raise DataError(f"'{experiment.data.name}' has no captions for a matcher")
    file = _trained_vocabulary(experiment, images[0], run, MATCHER)
    return tokenize(file, source.captions, experiment.text_encoder.length)


def vocabulary_file(run: TrainingRun, part: str = "prior") -> Path:
    """File of the vocabulary that is trained with a prior or a matcher."""
    return run.workdir / part / VOCABULARY


def start_encoder(run: TrainingRun, split: str) -> Checkpoint | None:
    """Text encoder from which that of a prior starts; None for random parameters.

    Args:
      run: folders of the training.
      split: split on which the prior is trained.

    Raises:
      CheckpointError: the folder that it should be in has none.
      ConfigError: it is that of a matcher that was trained on other images.
    """
    folder = _encoder_folder(run)
    if folder is None:
        return None
    if read_config(folder).kind == MATCHER:
        matcher = load_checkpoint(folder, MATCHER)
        found = matcher.metadata.get("split", split)
        if found != split:
            raise ConfigError(
                f"the matcher of '{folder}' was trained on '{found}', the prior on "
                f"'{split}': it would know held-out images; train one with --set "
                f"data.matcher_split={split}"
            )
        return Checkpoint(ENCODER, matcher.config.text, matcher.params["text"])
    return load_checkpoint(folder, ENCODER)


def _encoder_folder(run: TrainingRun) -> Path | None:
    """Folder of a matcher or a text encoder, with its vocabulary."""
    if run.encoder is not None:
        folders = [checkpoint_of(run.encoder, part) for part in (MATCHER, ENCODER)]
        found = [f for f in dict.fromkeys(folders) if (f / VOCABULARY).is_file()]
        if len(found) > 1:
            raise CheckpointError(
                f"'{run.encoder}' holds a matcher and a text encoder; name "
                + " or ".join(f"'{folder}'" for folder in found)
            )
        if found:
            return found[0]
        raise CheckpointError(
            f"'{run.encoder}' holds neither a matcher nor a text encoder; train a "
            "matcher with `jaxspec train matcher`"
        )
    if run.start is None:
        return None
    folder = checkpoint_of(run.start, "prior").parent / ENCODER
    if not folder.is_dir():
        raise CheckpointError(
            f"'{run.start}' has no {ENCODER}/ beside its prior; start from a bundle "
            "whose prior was trained with a text encoder"
        )
    return folder


def _trained_vocabulary(
    experiment: Experiment, images: ImageSource, run: TrainingRun, part: str = "prior"
) -> Path:
    """Trains the captions' vocabulary on first use, or copies that of the start.

    Raises:
      ConfigError: the working folder has another vocabulary than the start.
    """
    file = vocabulary_file(run, part)
    if experiment.text_encoder is None:
        return file
    if part == MATCHER:
        start = run.start and checkpoint_of(run.start, part)
    else:
        start = _encoder_folder(run)
    if file.is_file():
        if start is not None and read_text(file) != read_text(start / VOCABULARY):
            raise ConfigError(
                f"'{file}' is not the vocabulary of '{start}'; choose another --out"
            )
    else:
        if start is None:
            text = train_vocabulary(images.captions, experiment.text_encoder.vocab_size)
        else:
            text = read_text(start / VOCABULARY)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, text.encode())
    return file


def _text_windows(
    experiment: Experiment, folder: Path
) -> tuple[TextSource, TextSource]:
    """Windows of the training text and of the held-out text."""
    file, length = folder / str(experiment.text_file), experiment.prior.sequence_length
    train, held = (byte_windows(file, length, heldout=held) for held in (False, True))
    return train, held


def generated_sequences(
    experiment: Experiment,
    prior: Checkpoint,
    conditions: TokenSource,
    run: TrainingRun,
) -> tuple[TokenSource, TokenSource]:
    """Training and held-out sequences that the target generates.

    A short training reads each of them `READS` times.
    """
    training = experiment.train_drafter
    enough = max(training.steps * training.batch // READS, training.batch)
    heldout = max(HELDOUT["drafter"], training.batch)
    train, held = (
        self_generated_source(
            prior,
            conditions,
            count,
            max_cfg_scale=training.max_cfg_scale,
            seed=seed,
            cache_dir=run.workdir / "codes",
        )
        for count, seed in (
            (min(training.self_generated, enough), training.seed),
            (heldout, training.seed + 1),
        )
    )
    return train, held
