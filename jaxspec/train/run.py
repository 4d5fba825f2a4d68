"""Training of the parts of an experiment, from data to loadable checkpoints."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import (
    Checkpoint,
    checkpoint_of,
    load_checkpoint,
    params_digest,
    save,
)
from jaxspec.checkpoint.folders import replace_folder
from jaxspec.config import (
    KLTokenizerConfig,
    MARConfig,
    MultiScaleTokenizerConfig,
    NextScaleConfig,
    TokenizerConfig,
)
from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.one_d import OneDTokenizerConfig
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.data.batches import evenly_spaced
from jaxspec.data.dataset import Sources
from jaxspec.data.image_tokens import Sequences
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.io.text_files import read_text
from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES
from jaxspec.pipeline.bundle import load_prior, load_tokenizer
from jaxspec.pipeline.captions import TOKENIZER as VOCABULARY
from jaxspec.pipeline.orders import in_order_of
from jaxspec.sharding.device import device_name
from jaxspec.train.card import model_card
from jaxspec.train.classifier import classifier_job
from jaxspec.train.drafter import drafter_job
from jaxspec.train.experiment import Experiment
from jaxspec.train.flow_tokenizer import flow_job
from jaxspec.train.index_encoder import index_encoder_job
from jaxspec.train.kl_tokenizer import kl_job
from jaxspec.train.length import with_length
from jaxspec.train.loop import TrainingJob, run_job
from jaxspec.train.mar import mar_job
from jaxspec.train.matcher import MATCHER, matcher_job
from jaxspec.train.monitor import default_observers
from jaxspec.train.multi_scale_tokenizer import multi_scale_job
from jaxspec.train.next_scale import next_scale_job
from jaxspec.train.post_training import post_training_job
from jaxspec.train.prior import prior_job
from jaxspec.train.self_generated import seconds_per_sequence
from jaxspec.train.settings import TrainingConfig
from jaxspec.train.sources import (
    READS,
    caption_tokens,
    data_sequences,
    encoded_sequences,
    generated_sequences,
    generation_conditions,
    open_images,
    start_encoder,
    vocabulary_file,
)
from jaxspec.train.start import encoder_of, trained_alone, without
from jaxspec.train.text_encoder import ENCODER
from jaxspec.train.tokenizer import tokenizer_job
from jaxspec.train.training_run import TrainingRun
from jaxspec.train.workdir import lock_workdir
from jaxspec.typing import Params

# Jobs of tokenizers, and of priors that need theirs, by configuration.
_TOKENIZERS = {
    TokenizerConfig: tokenizer_job,
    MultiScaleTokenizerConfig: multi_scale_job,
    KLTokenizerConfig: kl_job,
    OneDTokenizerConfig: tokenizer_job,
    FlowTokenizerConfig: flow_job,
    ResidualTokenizerConfig: tokenizer_job,
}
_PRIORS = {NextScaleConfig: next_scale_job, MARConfig: mar_job}
# Held-out captions that are recorded with a prior of captions.
EXAMPLES = 9


def train_part(experiment: Experiment, part: str, run: TrainingRun) -> Path:
    """Trains a part, or resumes its training, and returns the checkpoint's folder.

    Args:
      experiment: data, configurations and training settings.
      part: "tokenizer", "prior", "drafter", "classifier" or "matcher".
      run: folders, data, devices and length.

    Raises:
      CheckpointError: a part that must be trained before is missing, or another process
        trains in this folder.
      ConfigError: the experiment has no such part, or does not fit the data.
      DataError: the data cannot be read or downloaded.
    """
    _check_part(experiment, part, run)
    with lock_workdir(run.workdir):
        return _train_part(experiment, part, run)


def _train_part(experiment: Experiment, part: str, run: TrainingRun) -> Path:
    images = open_images(experiment, part, run)
    folder = run.workdir / part
    make_job, heldout = _job_maker(experiment, part, images, run)
    experiment, job = with_length(
        experiment,
        part,
        folder,
        make_job,
        seconds=run.seconds,
        sharding=run.sharding,
        preparation=_preparation(experiment, part, images, run),
    )
    observers = default_observers(experiment, part, images, heldout, run.parts)
    result = run_job(job, folder, run.sharding, (*observers, *run.observers))
    names = images[0].class_names if images else []
    captioned = experiment.text_encoder is not None
    named = part == "prior" or (part == "classifier" and not captioned)
    if named and images is not None:
        metadata = {**result[part].metadata, **_named(experiment, images, names)}
        result = {**result, part: replace(result[part], metadata=metadata)}
    if getattr(experiment, f"train_{part}").rounded:
        kept = _kept(getattr(experiment, f"train_{part}"))
        result = {k: _rounded(v, kept) for k, v in result.items()}
    notes = {name: _notes(name, run) for name in result}  # before anything is written
    for name, checkpoint in result.items():
        path = run.workdir / "checkpoint" / name
        _finish(experiment, name, checkpoint, run.command, path, notes[name])
    if part == "prior":
        _copy_tokenizer(experiment, run)
    return run.workdir / "checkpoint" / part


def _kept(training: TrainingConfig) -> Callable[[Params], Params]:
    """Function that selects the parameters that a training does not change."""
    if getattr(training, "decoder_alone", False):
        return lambda params: without(params, trained_alone(params))
    if getattr(training, "encoder_alone", False):
        return lambda params: without(params, encoder_of(params))
    return lambda params: {}


def _rounded(checkpoint: Checkpoint, kept: Callable[[Params], Params]) -> Checkpoint:
    """A checkpoint rounded to bfloat16, but for parameters that are kept."""
    params = {**rounded(checkpoint.params), **kept(checkpoint.params)}
    return replace(checkpoint, params=params)


def rounded(params: Params) -> Params:
    """Parameters rounded to values of bfloat16; the dtype stays."""

    def rounded_leaf(x):
        return jnp.asarray(x).astype(jnp.bfloat16).astype(x.dtype)

    return jax.tree.map(rounded_leaf, params)


def _named(experiment: Experiment, images: Sources, names: list[str]) -> dict[str, Any]:
    """Metadata: names of classes; or, for captions, examples, styles and characters.

    Classes of captioned images are words that captions may end with.
    """
    if experiment.text_encoder is None:
        return {"class_names": names} if names else {}
    held = images[1].captions
    chosen = [held[i] for i in evenly_spaced(len(held), min(EXAMPLES, len(held)))]
    examples = list(experiment.data.examples or dict.fromkeys(chosen))
    named = {"styles": names if len(names) > 1 else [], "names": images[0].names}
    return {"examples": examples, **{key: x for key, x in named.items() if x}}


def _job_maker(
    experiment: Experiment, part: str, images: Sources | None, run: TrainingRun
) -> tuple[Callable[[Experiment], TrainingJob], Sequences | None]:
    """Function from an experiment to the training of a part; held-out sequences."""
    start = None
    if run.start is not None:
        start = load_checkpoint(checkpoint_of(run.start, part))
    if part in ("tokenizer", "classifier"):
        assert images is not None  # checked by `_check_part`
        make = classifier_job
        if part == "tokenizer":
            make = _TOKENIZERS.get(type(experiment.tokenizer))
            if make is None:
                raise ConfigError(
                    f"{experiment.name}: tokenizers of this kind are converted, not "
                    "trained; name one with --checkpoint"
                )
        source, held_images = images
        training = experiment.train_tokenizer
        if part == "tokenizer" and training is not None and training.encoder_alone:
            make = index_encoder_job
        elif part == "tokenizer" and _generates(experiment):
            prior = load_prior(run.parts / "prior")
            return (
                lambda experiment: post_training_job(
                    experiment, source, held_images, prior, start
                ),
                None,
            )
        return lambda experiment: make(experiment, source, held_images, start), None
    if part == MATCHER:
        assert images is not None  # checked by `_check_part`
        pairs = [(x, caption_tokens(experiment, images, x, run)) for x in images]
        (source, captions), (held_images, held_captions) = pairs
        return (
            lambda experiment: matcher_job(
                experiment, source, captions, held_images, held_captions, start
            ),
            None,
        )
    if part == "prior":
        encoder = None
        if experiment.text_encoder is not None:
            encoder = start_encoder(run, experiment.data.train_split)
        train, heldout = data_sequences(experiment, images, run)
        if make_prior := _PRIORS.get(type(experiment.prior)):
            tokenizer = load_tokenizer(run.parts / "tokenizer")
            return (
                lambda experiment: make_prior(
                    experiment, tokenizer, train, heldout, start
                ),
                heldout,
            )
        return (
            lambda experiment: prior_job(experiment, train, heldout, start, encoder),
            heldout,
        )
    prior = load_prior(run.parts / "prior")
    if prior.metadata.get("objective") in MASKED_OBJECTIVES:
        raise ConfigError(
            f"'{run.parts / 'prior'}' fills in masked tokens in any order: nothing "
            "drafts for it"
        )

    def make_drafter_job(experiment: Experiment) -> TrainingJob:
        training = experiment.train_drafter
        if training.self_generated and experiment.prompts_file is None:
            conditions = generation_conditions(experiment, prior, images, run)
            sequences = generated_sequences(experiment, prior, conditions, run)
        else:
            sequences = encoded_sequences(experiment, images, run)
        return drafter_job(
            experiment,
            prior,
            *sequences,
            run.workdir / part,
            start,
            measured=run.sharding.mesh is None,
        )

    return make_drafter_job, None


def _generates(experiment: Experiment) -> bool:
    """Whether a tokenizer is trained on tokens that a model generates."""
    training = experiment.train_tokenizer
    return training is not None and training.generated_tokens > 0


def _preparation(
    experiment: Experiment, part: str, images: Sources | None, run: TrainingRun
) -> Callable[[], float]:
    """Function that measures the seconds per step in which sequences are generated."""
    training = experiment.train_drafter
    answers = experiment.prompts_file is not None
    if part != "drafter" or not training.self_generated or answers:
        return lambda: 0.0

    def measure() -> float:
        prior = load_prior(run.parts / "prior")
        conditions = generation_conditions(experiment, prior, images, run)
        seconds = seconds_per_sequence(prior, conditions, training.max_cfg_scale)
        return seconds * training.batch / READS

    return measure


def _check_part(experiment: Experiment, part: str, run: TrainingRun) -> None:
    """Checks that a part can be trained, and that a bundle has those before it."""
    text = experiment.text_file is not None
    if part == "drafter" and experiment.drafter is None:
        raise ConfigError(f"{experiment.name} has no drafter to train")
    if text and part not in ("prior", "drafter"):
        raise ConfigError(f"text has no {part}; train its prior, then a drafter")
    if part not in ("prior", "drafter"):
        training = getattr(experiment, f"train_{part}")
        if training is not None and training.optimizer == "muon":
            raise ConfigError(
                f"train_{part}.optimizer=muon: Muon is for transformers, which priors "
                "and drafters are; choose adamw"
            )
    if part == MATCHER and experiment.text_encoder is None:
        raise ConfigError(f"{experiment.name} has no captions for a matcher")
    if run.encoder is not None and experiment.text_encoder is None:
        raise ConfigError(f"{experiment.name} has no captions for a text encoder")
    needed = {"prior": ["tokenizer"], "drafter": ["tokenizer", "prior"]}.get(part, [])
    for earlier in needed[text:]:
        folder = run.parts / earlier
        if not folder.is_dir():
            raise CheckpointError(
                f"'{folder}' is missing; run `jaxspec train {earlier}` with "
                "this --out first, or name a bundle with --checkpoint"
            )
    if part == "prior" and not text:
        _check_tokenizers(experiment, run)


def _check_tokenizers(experiment: Experiment, run: TrainingRun) -> None:
    """Checks that a prior is trained on the tokens of the tokenizer beside it.

    Raises:
      CheckpointError: the working folder has another tokenizer than the bundle.
    """
    own, read = run.workdir / "checkpoint" / "tokenizer", run.parts / "tokenizer"
    if own.is_dir() and own.resolve() != read.resolve():
        mine, other = map(load_tokenizer, (own, read))
        same = in_order_of(mine, experiment.prior).config == mine.config
        if not same or params_digest(mine.params) != params_digest(other.params):
            raise CheckpointError(
                f"'{own}' is another tokenizer than '{read}', on whose tokens the "
                "prior would be trained: choose another --out, or no --checkpoint"
            )


def _notes(part: str, run: TrainingRun) -> dict[str, str]:
    """Files beside a checkpoint: the vocabulary of a text encoder or a matcher."""
    if part not in (ENCODER, MATCHER):
        return {}
    owner = "prior" if part == ENCODER else part
    return {VOCABULARY: read_text(vocabulary_file(run, owner))}


def _copy_tokenizer(experiment: Experiment, run: TrainingRun) -> None:
    """Puts the tokenizer of another bundle beside a prior, if there is none.

    The working folder is then a bundle that generates.
    """
    source, target = run.parts / "tokenizer", run.workdir / "checkpoint" / "tokenizer"
    if not source.is_dir() or target.exists():
        return
    found = load_tokenizer(source)
    if (ordered := in_order_of(found, experiment.prior)).config != found.config:
        card = source / "README.md"
        notes = {card.name: read_text(card)} if card.is_file() else {}
        save(target, ordered, notes)
    else:
        with replace_folder(target) as fresh:
            shutil.copytree(source, fresh, dirs_exist_ok=True)


def _finish(
    experiment: Experiment,
    part: str,
    result: Checkpoint,
    command: str,
    path: Path,
    notes: dict[str, str],
) -> None:
    """Writes a checkpoint with its model card."""
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
    card = model_card(part, result, experiment)
    save(path, result, {"README.md": card, **notes})
