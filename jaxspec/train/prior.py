"""Prior training: models over tokens, among them draft models."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.config import TransformerConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, heldout_batches, step_rng
from jaxspec.data.image_tokens import Sequences
from jaxspec.drafters.inline_blocks.drafter import with_extra_tokens
from jaxspec.errors import ConfigError
from jaxspec.evaluate.likelihood import likelihood_metrics
from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES, MaskedDiffusion
from jaxspec.models.t5.model import TextEncoder
from jaxspec.models.transformer.model import Transformer
from jaxspec.train import objectives
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.settings import HELDOUT, PriorTrainingConfig
from jaxspec.train.start import check_kind, check_start
from jaxspec.train.step_distillation import step_distillation_loss
from jaxspec.train.text_encoder import (
    encoded,
    joined_params,
    split_params,
    with_encoder,
)
from jaxspec.typing import Array, Params


def prior_job(
    experiment: Experiment,
    source: Sequences,
    heldout: Sequences,
    start: Checkpoint | None = None,
    start_encoder: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of a model over tokens.

    Args:
      experiment: configurations of the model and its training.
      source: training sequences.
      heldout: sequences that select the checkpoint.
      start: trained model of the same configuration, up to dropout and the order of the
        tokens, whose parameters are the initial ones; it may have fewer extra tokens,
        and no embeddings of next cells, which are zeros then. None for random
        parameters.
      start_encoder: text encoder whose parameters are the initial ones, for a prior
        that is trained together with one; None for random parameters.

    Raises:
      ConfigError: `start` or `start_encoder` is of another kind or configuration, or
        there is no masked model that a distillation starts from.
    """
    config = experiment.train_prior
    assert isinstance(experiment.prior, TransformerConfig)  # see `next_scale_job`
    model = Transformer(experiment.prior)
    encoder = experiment.text_encoder and TextEncoder(experiment.text_encoder)
    params = model.init(seed_key(config.seed))
    if start is not None:
        params = _start_params(start, model, params)
    if encoder is not None:
        encoder_params = encoder.init(seed_key(config.seed + 1))
        if start_encoder is not None:
            check_start(start_encoder, "text_encoder", encoder.config)
            encoder_params = start_encoder.params
        params = joined_params(params, encoder_params)
    distilled, teacher = config.objective == "distilled", ()
    if distilled:
        teacher = (_teacher(start, encoder),)
    started = start is not None or start_encoder is not None
    start_digest = params_digest(params) if started else ""

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices, step_rng(config.seed, step))

    def finish(trained, metrics):
        metadata = {"metrics": metrics, "objective": config.objective}
        if distilled:
            assert start is not None  # see `_teacher`
            metadata["objective"] = start.metadata["objective"]
        if config.objective == "any_order" and not config.random_share:
            metadata["objective"] = "next"  # of one order alone
        if config.objective == "sorted":
            metadata["exits"] = list(config.exits)
        if config.objective in ("continuation", "refinement", "tidar"):
            metadata["block"] = config.block
        params, encoder_params = split_params(encoder, trained)
        parts = {"prior": Checkpoint("prior", experiment.prior, params, metadata)}
        if encoder is not None:
            kind, metadata = "text_encoder", {"metrics": metrics}
            parts[kind] = Checkpoint(kind, encoder.config, encoder_params, metadata)
        return parts

    training = Training(
        "prior",
        config,
        make_step(model, config, encoder),
        batch_fn,
        make_evaluation(model, config, heldout, encoder),
        fingerprint(
            experiment.prior,
            config,
            experiment.data,
            source.digest,
            start_digest,
            *((experiment.text_encoder,) if encoder else ()),
        ),
        frozen=teacher,
    )
    return TrainingJob(training, init_train_state(config, params), finish)


def _teacher(start: Checkpoint | None, encoder: TextEncoder | None) -> Params:
    """Parameters of the masked model that a distillation starts from.

    Raises:
      ConfigError: there is none.
    """
    if start is None or start.metadata.get("objective") not in MASKED_OBJECTIVES:
        raise ConfigError(
            "objective='distilled' needs a masked model to start from: --start DIR"
        )
    if encoder is not None:
        raise ConfigError("objective='distilled' is for models of classes")
    return start.params


def _start_params(start: Checkpoint, model: Transformer, init: Params) -> Params:
    """Parameters of `start`, with those of `init` for tokens that it lacks.

    Embeddings of next cells that it lacks are zeros: with them it predicts as before.
    """
    check_kind(start, "prior")
    config, start_config = model.config, start.config
    same = {"extra_tokens", "order", *(["next_cell"] if config.next_cell else [])}
    same |= {field.name for field in fields(config) if field.name.endswith("dropout")}
    differences = [
        f"{field.name}={getattr(start_config, field.name)!r}, not "
        f"{getattr(config, field.name)!r}"
        for field in fields(config)
        if field.name not in same
        and getattr(start_config, field.name) != getattr(config, field.name)
    ]
    if differences:
        raise ConfigError(
            "the model to start from has another configuration: "
            + "; ".join(differences)
        )
    if start.config.extra_tokens > config.extra_tokens:
        raise ConfigError(
            f"the model to start from has {start.config.extra_tokens} extra tokens, "
            f"this one {config.extra_tokens}"
        )
    params = start.params
    if config.next_cell and not start_config.next_cell:
        params = {**params, "next_cell": jax.tree.map(np.zeros_like, init["next_cell"])}
    if config.factors:
        return params
    embeddings = init["embedding"]["embedding"]
    present = len(params["embedding"]["embedding"])
    return with_extra_tokens(params, embeddings[present:])


def make_objective(
    model: Transformer, config: PriorTrainingConfig
) -> Callable[..., Array]:
    """The objective of a training, with the model and its settings bound.

    That of a distillation has the teacher's parameters after those of the model.
    """

    def masked(*args, **options):
        return objectives.masked_loss(MaskedDiffusion(model), *args, **options)

    def distilled(*args):
        masked_model, steps = MaskedDiffusion(model), config.teacher_steps
        return step_distillation_loss(masked_model, *args, steps=steps)

    def tidar(*args):
        return objectives.tidar_loss(model, *args, block=config.block)[0]

    blocks = partial(objectives.block_loss, model, block=config.block)
    return {
        "next": partial(objectives.next_loss, model, noise=config.token_noise),
        "any_order": partial(
            objectives.any_order_loss, model, share=config.random_share
        ),
        "sorted": partial(objectives.sorted_loss, model, exits=config.exits),
        "masked": masked,
        "maskgit": partial(masked, cosine=True),
        "distilled": distilled,
        "continuation": partial(blocks, refine=False),
        "refinement": partial(blocks, refine=True),
        "tidar": tidar,
    }[config.objective]


def make_step(
    model: Transformer,
    config: PriorTrainingConfig,
    encoder: TextEncoder | None = None,
):
    """One step `(state, step, (tokens [B, T], prompts)) -> (state, metrics)`.

    Args:
      model: static functions of the model.
      config: settings of the training.
      encoder: text encoder that is trained together with the model; prompts are then
        captions int32 [B, P]. None without one.
    """
    objective = make_objective(model, config)

    def loss_fn(params, *arguments):
        *teacher, tokens, prompts, key = arguments
        null_key, objective_key = jax.random.split(key)
        rate = model.config.condition_dropout
        null = jax.random.bernoulli(null_key, jnp.float32(rate), (len(tokens),))
        params, prompts = encoded(encoder, params, prompts)
        return objective(params, *teacher, tokens, prompts, null, objective_key)

    return make_gradient_step(config, loss_fn)


def make_evaluation(
    model: Transformer,
    config: PriorTrainingConfig,
    heldout: Sequences,
    encoder: TextEncoder | None = None,
):
    """Evaluation `state -> metrics`: held-out loss, with one order also the entropy.

    Models of any order are measured in that of their configuration.
    """
    objective = make_objective(model, config)
    most, key = HELDOUT["prior"], seed_key(config.seed + 1)

    def evaluate(state, *teacher):
        params, source = with_encoder(encoder, state["average"], heldout)
        if config.objective in ("next", "any_order"):
            values = likelihood_metrics(
                model, params, source, batch=config.batch, most=most
            )
            return {"heldout_loss": values["nll"], "entropy": values["entropy"]}
        losses = []
        for i, part in enumerate(heldout_batches(len(heldout), most, config.batch)):
            tokens = heldout.tokens[0, part].astype(np.int32)
            batch = tokens, source.prompts(part), np.zeros(len(part), bool)
            # A sorted model uses the key for dropout, which is off here.
            batch_key = (
                None if config.objective == "sorted" else jax.random.fold_in(key, i)
            )
            losses.append(measure(params, *teacher, *batch, batch_key))
        return {"heldout_loss": float(np.mean(losses))}

    measure = jax.jit(objective)
    return evaluate
