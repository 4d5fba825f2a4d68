"""Training of next-scale models (VAR, arXiv 2404.02905; HMAR, arXiv 2506.04421)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.config import NextScaleConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, heldout_batches, step_rng
from jaxspec.data.image_tokens import Sequences
from jaxspec.evaluate.scale_likelihood import log_probs, of_tokens, scale_likelihood
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale.plans import fewer_layers
from jaxspec.next_scale.stages import Stage
from jaxspec.tokenizers.multi_scale.scales import QUANTIZER, Scales
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import apply_gradients, init_train_state
from jaxspec.train.settings import HELDOUT, PriorTrainingConfig
from jaxspec.train.start import check_start, start_digests
from jaxspec.typing import Array, Bool, Float, Int, Key, Params


def next_scale_job(
    experiment: Experiment,
    tokenizer: Checkpoint,
    source: Sequences,
    heldout: Sequences,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of a next-scale model.

    Args:
      experiment: configurations of the model and its training.
      tokenizer: multi-scale tokenizer, whose codebook and convolutions make the inputs.
      source: training sequences, tokens of all scales.
      heldout: sequences that select the checkpoint.
      start: trained model of the same configuration, whose parameters are the initial
        ones; None for random parameters.

    Raises:
      ConfigError: `start` has another configuration.
    """
    config, sizes = experiment.train_prior, experiment.prior
    assert isinstance(sizes, NextScaleConfig)
    model, scales = NextScale(sizes), tokenizer.model.scales
    quantizer = jax.device_get({k: tokenizer.params[k] for k in QUANTIZER})
    params = model.init(seed_key(config.seed))
    if start is not None:
        check_start(start, "next_scale", sizes)
        params = start.params

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices, step_rng(config.seed, step))

    def evaluate(state, quantizer):
        params, batch = state["average"], config.batch
        settings: dict[str, Any] = {"batch": batch, "most": HELDOUT["prior"]}
        data = params, quantizer, heldout
        found = scale_likelihood(model, scales, *data, **settings)
        first = found.pop("nll")
        if config.objective == "sorted":
            losses = {"heldout_all": first}
            for n, stages in zip(
                config.exits, subsets(sizes, scales, config), strict=True
            ):
                cut = scale_likelihood(model, scales, *data, **settings, stages=stages)
                losses[f"heldout_{n}"] = cut["nll"]
            return {
                "heldout_loss": float(np.mean([*losses.values()])),
                **losses,
                **found,
            }
        if not sizes.mask_layers:
            return {"heldout_loss": first, **found}
        masked, key = [], seed_key(config.seed + 1)
        indices = heldout_batches(len(heldout), HELDOUT["prior"], batch)
        for i, part in enumerate(indices):
            tokens = heldout.tokens[0, part].astype(np.int32)
            pair = tokens, heldout.prompts(part)
            masked.append(measure(params, quantizer, *pair, jax.random.fold_in(key, i)))
        last = float(np.mean(masked))
        parts = {"heldout_first": first, "heldout_masked": last}
        return {"heldout_loss": first + last, **parts, **found}

    @jax.jit
    def measure(params, quantizer, tokens, classes, key):
        """Loss of masked tokens."""
        null = jnp.zeros(len(tokens), bool)
        log_p = log_probs(model, scales, params, quantizer, tokens, classes, null)
        images, prompts = (tokens, log_p), (classes, null)
        return refinement_loss(model, scales, params, quantizer, images, prompts, key)

    def finish(trained, metrics):
        metadata = {"metrics": metrics}
        return {"prior": Checkpoint("next_scale", sizes, trained, metadata)}

    training = Training(
        "prior",
        config,
        make_step(sizes, scales, config),
        batch_fn,
        evaluate,
        fingerprint(
            sizes,
            config,
            experiment.data,
            source.digest,
            params_digest(tokenizer.params),
            *start_digests(start),
        ),
        frozen=(quantizer,),
    )
    return TrainingJob(training, init_train_state(config, params), finish)


def subsets(
    sizes: NextScaleConfig, scales: Scales, config: PriorTrainingConfig
) -> list[tuple[Stage, ...]]:
    """Stages of generators whose last scales have as many layers as each of `exits`."""
    model, full = NextScale(sizes), config.full_scales
    if config.objective != "sorted" or full is None:
        return []
    return [fewer_layers(model, scales, full, n).stages for n in config.exits]


def make_step(sizes: NextScaleConfig, scales: Scales, config: PriorTrainingConfig):
    """One step `(state, quantizer, step, (tokens, classes)) -> (state, metrics)`.

    With the objective "sorted" the last scales are computed by all layers or by one of
    the subsets, each with the same probability in a step (the idea of VARiant, arXiv
    2511.16546, whose training in three phases is not public).

    Args:
      sizes: configuration of the model.
      scales: functions of its tokenizer.
      config: settings of the training.
    """
    model, dtype = NextScale(sizes), jnp.dtype(config.compute_dtype)
    plans = (), *subsets(sizes, scales, config)
    scores = [partial(log_probs, model, scales, stages=stages) for stages in plans]

    def step_fn(state, quantizer, step, batch):
        tokens, classes = batch
        key = jax.random.fold_in(seed_key(config.seed), step)
        rate = jnp.float32(sizes.condition_dropout)
        null = jax.random.bernoulli(key, rate, (len(tokens),))

        def loss_fn(params):
            params = jax.tree.map(lambda x: x.astype(dtype), params)
            which = jax.random.randint(jax.random.fold_in(key, 2), (), 0, len(scores))
            data = params, quantizer, tokens, classes, null
            log_p = jax.lax.switch(which, scores, *data)
            loss = -jnp.mean(of_tokens(log_p, tokens))
            if not sizes.mask_layers:
                return loss, {"loss": loss}
            images, prompts = (tokens, log_p), (classes, null)
            masked_key = jax.random.fold_in(key, 1)
            masked = refinement_loss(
                model, scales, params, quantizer, images, prompts, masked_key
            )
            parts = {"first_loss": loss, "masked_loss": masked}
            return loss + masked, {"loss": loss + masked, **parts}

        loss_of = jax.value_and_grad(loss_fn, has_aux=True)
        (_, metrics), gradient = loss_of(state["params"])
        return apply_gradients(config, state, gradient, step), metrics

    return step_fn


def refinement_loss(
    model: NextScale,
    scales: Scales,
    params: Params,
    quantizer: Params,
    images: tuple[Int[Array, "B T"], Float[Array, "B T V"]],
    prompts: tuple[Int[Array, "B"], Bool[Array, "B"]],
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """Mean negative log-likelihood in nats of masked tokens, given the others.

    Each sequence has its own share of masked tokens. In their places are samples of the
    first pass, though without guidance and filters: the published training keeps the
    true tokens there, which the interpolation and the convolution of a map show to
    their neighbors. It also trains the mask layers afterwards, with all others fixed,
    and masks one share of a whole batch.

    Args:
      model: model with `mask_layers`.
      scales: functions of its tokenizer.
      params: parameters of the model.
      quantizer: codebook and convolutions of the tokenizer.
      images: tokens of all scales, and the log-probabilities of the first pass.
      prompts: classes, and the sequences that get the null class instead.
      key: key of the masks and samples.
    """
    (tokens, log_p), (classes, null) = images, prompts
    share_key, mask_key, sample_key = jax.random.split(key, 3)
    share = jax.random.uniform(share_key, (len(tokens), 1), jnp.float32)
    masked = jax.random.uniform(mask_key, tokens.shape, jnp.float32) < share
    masked = masked.at[:, 0].set(False)  # the first map is not refined
    samples = jax.random.categorical(sample_key, jax.lax.stop_gradient(log_p))
    shown = jnp.where(masked, samples.astype(tokens.dtype), tokens)
    condition, count = model.condition(params, classes, null), len(scales)
    own = [
        scales.own(quantizer, shown[:, scales.tokens_of(k)], k) for k in range(1, count)
    ]
    vectors, own = scales.inputs(quantizer, tokens), jnp.concatenate(own, axis=1)
    logits = model.refine(
        params, condition, vectors[:, 1:], own, masked[:, 1:], 1, count
    )
    loss = -of_tokens(jax.nn.log_softmax(logits), tokens[:, 1:])
    weights = masked[:, 1:].astype(jnp.float32)
    return jnp.sum(loss * weights) / jnp.maximum(jnp.sum(weights), 1.0)
