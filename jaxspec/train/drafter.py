"""Drafter training: one trainer for all drafters that read the target's features."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, digest_of, params_digest
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, heldout_batches, step_rng
from jaxspec.data.image_tokens import Sequences, TokenSource
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.eagle.draft_vocabulary import frequent_tokens
from jaxspec.drafters.registry import kind_of
from jaxspec.errors import ConfigError
from jaxspec.train.acceptance import jacobi_weight, make_acceptance
from jaxspec.train.distillation import prediction_losses, weighted_mean
from jaxspec.train.experiment import Experiment
from jaxspec.train.feature_cache import cache_features
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.settings import HELDOUT, DrafterTrainingConfig
from jaxspec.train.start import check_kind
from jaxspec.train.teacher import run_teacher
from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree


def drafter_job(
    experiment: Experiment,
    prior: Checkpoint,
    source: Sequences,
    heldout: Sequences,
    cache_dir: Path,
    start: Checkpoint | None = None,
    *,
    measured: bool = True,
) -> TrainingJob:
    """Prepares the training of a drafter for a frozen prior.

    Args:
      experiment: configurations of the drafter and its training.
      prior: the target.
      source: training sequences.
      heldout: sequences that select the checkpoint.
      cache_dir: folder of the cached features, if the settings ask for them.
      start: trained drafter of the same configuration, whose parameters are the initial
        ones; None for random parameters.
      measured: whether evaluations also generate, see `train.acceptance`; on one device
        only.

    Raises:
      ConfigError: `start` has another configuration.
    """
    config = experiment.train_drafter
    assert experiment.drafter is not None  # checked by `train_part`
    kind = kind_of(experiment.drafter)
    drafter = kind.drafter(experiment.drafter, prior.config)
    if start is not None:
        check_drafter_start(start, kind.name, drafter)
    params, fixed_params = _initial_params(drafter, config, source, start)
    feature_cache = None
    if config.cached != "no":
        feature_cache = cache_features(
            prior,
            drafter.feature_layers,
            source,
            dtype=config.cached,
            cache_dir=cache_dir,
        )
    target_digest = digest_of(prior)

    def finish(trained, metrics):
        metadata = {"metrics": metrics, "target_digest": target_digest}
        if weight := jacobi_weight(prior.config):
            metadata["jacobi_weight"] = weight
        result = Checkpoint(
            kind.name, experiment.drafter, trained, metadata, target=prior.config
        )
        return {"drafter": result}

    training = Training(
        "drafter",
        config,
        make_step(drafter, config, fixed_params),
        make_batch_fn(config, source, feature_cache),
        make_evaluation(drafter, config, heldout, fixed_params, measured=measured),
        fingerprint(
            experiment.drafter,
            config,
            experiment.data,
            source.digest,
            target_digest,
            "" if start is None else params_digest(start.params),
        ),
        result=lambda state: {**state["average"], **fixed_params},
        frozen=(prior.params,),
    )
    return TrainingJob(training, init_train_state(config, params), finish)


def _initial_params(
    drafter: Any,
    config: DrafterTrainingConfig,
    source: Sequences,
    start: Checkpoint | None,
) -> tuple[Params, Params]:
    """Parameters to train, and fixed ones: the ids of a draft vocabulary."""
    if start is not None:
        params = dict(start.params)
    else:
        params = drafter.init_params(seed_key(config.seed))
    ids = params.pop("ids", None)
    if ids is None:
        return params, {}
    if start is None:  # draft only the most frequent tokens
        vocab, size = drafter.target.vocab_size, drafter.config.draft_vocab
        ids = frequent_tokens(source.tokens, vocab, size)
    return params, {"ids": ids}


def make_batch_fn(
    config: DrafterTrainingConfig, source: Sequences, feature_cache: np.ndarray | None
):
    """Batches `step -> (tokens [B, T], prompts, cached features or None)`."""

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        rng = step_rng(config.seed, step)
        if feature_cache is None:
            return (*source.take(indices, rng), None)
        assert isinstance(source, TokenSource)  # checked by `cache_features`
        indices = source.sample_indices(indices, rng)
        return (*source.at(indices), np.asarray(feature_cache[indices]))

    return batch_fn


def check_drafter_start(start: Checkpoint, kind: str, drafter: Any) -> None:
    """Checks that a drafter's training can start from a checkpoint.

    The number of refinement passes may differ, since they have no parameters.

    Raises:
      ConfigError: the checkpoint is of another kind or configuration.
    """

    def without_refinements(config):
        block = isinstance(config, DFlashConfig)
        return replace(config, refinements=0) if block else config

    check_kind(start, kind)
    trained = without_refinements(drafter.config), drafter.target
    starting = without_refinements(start.config), start.target
    if trained != starting:
        raise ConfigError(
            f"the drafter to start from has the configuration {start.config}; "
            f"the one to train has {drafter.config}"
        )


def make_step(drafter: Any, config: DrafterTrainingConfig, fixed_params: Params):
    """One step `(state, target_params, step, batch) -> (state, metrics)`.

    A batch is (tokens [B, T], prompts, cached features or None).

    Args:
      drafter: static functions of the drafter.
      config: settings of the training.
      fixed_params: parameters of the drafter that are not trained.
    """

    def loss_fn(params, target_params, tokens, prompts, cached, key):
        losses, _, regression = drafter_losses(
            drafter,
            config,
            {**params, **fixed_params},
            target_params,
            tokens,
            prompts,
            key,
            cached,
        )
        return _total_loss(config, losses, regression)

    return make_gradient_step(config, loss_fn)


def _total_loss(config: DrafterTrainingConfig, losses, regression):
    """Training loss: weighted divergences, and the regression on features."""
    return weighted_mean(losses, config.decay) + config.regression * regression


def drafter_losses(
    drafter: Any,
    config: DrafterTrainingConfig,
    drafter_params: Params,
    target_params: Params,
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    key: Array,
    cached: Float[Array, "B 2 Y E"] | None = None,
) -> tuple[Float[Array, "B M G"], Float[Array, "B M G"], Float[Array, ""]]:
    """Divergence of each prediction from the target, its overlap, and the regression.

    With `config.max_cfg_scale` above 1 the drafter predicts the same positions in the
    conditional and the unconditional branch, and the distributions after CFG are
    compared, at a scale sampled for each sequence. Otherwise each sequence is read in
    one branch, which is sampled.

    Args:
      drafter: static functions of the drafter.
      config: settings of the training.
      drafter_params: parameters of the drafter.
      target_params: parameters of the frozen target.
      tokens: int32 [B, T], sequences of the data.
      prompts: conditions of the sequences, as the target takes them.
      key: random key for scales or branches and for the drafter's positions; consumed.
      cached: features of the sequences from `cache_features`; None to run the target.

    Returns:
      Divergences, overlaps and regression loss of `prediction_losses`.
    """
    branch_key, output_key = jax.random.split(key)
    nulls, scale = _sample_branches(config, len(tokens), branch_key)
    teachers = [
        run_teacher(
            drafter.target,
            target_params,
            drafter.feature_layers,
            tokens,
            prompts,
            null,
            cached,
        )
        for null in nulls
    ]
    return prediction_losses(
        drafter,
        drafter_params,
        teachers,
        output_key,
        cfg_scale=scale,
        loss=config.divergence,
    )


def _sample_branches(
    config: DrafterTrainingConfig, count: int, key: Array
) -> tuple[list[Bool[Array, "B"]], Float[Array, "B"] | None]:
    """Null flags of each pass of the target, and CFG scales or None without CFG."""
    if config.max_cfg_scale == 1.0:
        # A float32 probability samples the same branches with 64-bit types enabled.
        share = jnp.float32(config.null_share)
        return [jax.random.bernoulli(key, share, (count,))], None
    scale = jax.random.uniform(
        key, (count,), jnp.float32, minval=1.0, maxval=config.max_cfg_scale
    )
    return [jnp.zeros(count, bool), jnp.ones(count, bool)], scale


def make_evaluation(
    drafter: Any,
    config: DrafterTrainingConfig,
    heldout: Sequences,
    fixed_params: Params,
    *,
    measured: bool = True,
):
    """Evaluation `(state, target_params) -> metrics` on held-out sequences.

    Metrics are the loss, the overlap at each index in a block, and tokens per target
    call.

    Args:
      drafter: static functions of the drafter.
      config: settings of the training.
      heldout: held-out sequences.
      fixed_params: parameters of the drafter that are not trained.
      measured: whether to generate, which gives "tokens_per_call".
    """
    acceptance = make_acceptance(drafter, config, heldout) if measured else None
    batches = heldout_batches(len(heldout), HELDOUT["drafter"], config.batch)

    @jax.jit
    def measure(params, target_params, tokens, prompts, key):
        losses, overlaps, regression = drafter_losses(
            drafter, config, params, target_params, tokens, prompts, key
        )
        loss = _total_loss(config, losses, regression)
        return loss, jnp.nanmean(overlaps, axis=(0, 1))

    def evaluate(state, target_params):
        losses, overlaps = [], []
        params = {**state["average"], **fixed_params}
        for i, part in enumerate(batches):
            tokens = heldout.tokens[0, part].astype(np.int32)
            key = jax.random.fold_in(seed_key(config.seed + 1), i)
            prompts = heldout.prompts(part)
            loss, by_index = measure(params, target_params, tokens, prompts, key)
            losses.append(float(loss))
            overlaps.append(np.asarray(by_index))
        by_index = np.mean(overlaps, axis=0)
        overlap_metrics = {f"overlap_{i + 1}": float(x) for i, x in enumerate(by_index)}
        metrics = {"heldout_loss": float(np.mean(losses)), **overlap_metrics}
        if acceptance is not None:
            metrics["tokens_per_call"] = acceptance(params, target_params)
        return metrics

    return evaluate
