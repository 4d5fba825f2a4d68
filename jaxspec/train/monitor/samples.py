"""Sample images of a training: reconstructions, and images that the prior generates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, model_of
from jaxspec.config import MARConfig, NextScaleConfig
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.core.generator import generate as generate_batch
from jaxspec.core.noise import batch_keys, seed_key
from jaxspec.core.sampling import Sampling, active_steps
from jaxspec.data.batches import evenly_spaced
from jaxspec.data.image_tokens import Sequences
from jaxspec.data.source import ImageSource
from jaxspec.io.images import grid_image, png_bytes, to_bytes, to_unit
from jaxspec.io.writing import write_file
from jaxspec.mar import MARGenerator, MARVariables, UnmaskingSchedule
from jaxspec.masked import MaskedGenerator, MaskedVariables, MaskingSchedule
from jaxspec.models.mar.model import MAR
from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES, MaskedDiffusion
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.t5.model import TextEncoder
from jaxspec.models.transformer.model import Transformer
from jaxspec.next_scale.plans import one_model
from jaxspec.next_scale.state import NextScaleVariables
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.tokenizers.multi_scale.scales import QUANTIZER
from jaxspec.train.events import Observer, TrainingEvent
from jaxspec.train.experiment import Experiment
from jaxspec.train.text_encoder import encoded
from jaxspec.typing import Params

SAMPLES = "samples"
_PAIRS = 32  # held-out images beside their reconstructions
_IMAGES = 16  # generated images
_CFG_SCALE = 2.0
# Steps of a masked model, and of the chains of its head.
_MASKED_STEPS = 12
_MAR_STEPS, _HEAD_STEPS = 16, 50


def reconstructions(experiment: Experiment, heldout: ImageSource) -> Observer:
    """Observer that writes held-out images, each left of its reconstruction."""
    assert experiment.tokenizer is not None  # images, not text
    tokenizer = model_of(experiment.tokenizer)
    count = min(_PAIRS, len(heldout))
    images = heldout.take(evenly_spaced(len(heldout), count))

    @jax.jit
    def reconstruct(params, images):
        return tokenizer.decode(params, tokenizer.encode(params, images))

    def observe(event: TrainingEvent) -> None:
        if event.params is not None:
            out = to_bytes(np.asarray(reconstruct(event.params, to_unit(images))))
            pairs = np.concatenate([images, out], axis=2)
            _write(event, grid_image(pairs))

    return observe


def prior_samples(
    experiment: Experiment, tokenizer: Checkpoint, heldout: Sequences
) -> Observer:
    """Observer that writes images of held-out classes or captions, of one fixed seed.

    Args:
      experiment: configurations of the prior and its text encoder.
      tokenizer: image tokenizer.
      heldout: held-out sequences, whose conditions are taken.
    """
    encoder = experiment.text_encoder and TextEncoder(experiment.text_encoder)
    prompts = jnp.asarray(heldout.prompts(evenly_spaced(len(heldout), _IMAGES)))
    # On the host, because the prior's parameters may be on a mesh.
    tokenizer_params = jax.device_get(tokenizer.params)
    sampling = Sampling.create(cfg_scale=_CFG_SCALE)
    generator, variables_of = _generator(experiment, tokenizer, sampling)
    decoder = tokenizer.model

    @jax.jit
    def generate(params, decoder_params):
        prior, conditions = encoded(encoder, params, prompts)
        variables = variables_of(prior, decoder_params)
        keys = batch_keys(seed_key(0), len(prompts))
        out = generate_batch(
            generator, variables, conditions, sampling=sampling, keys=keys
        )
        return decoder.decode(decoder_params, out.tokens)

    def observe(event: TrainingEvent) -> None:
        if event.params is not None:
            images = generate(event.params, tokenizer_params)
            _write(event, grid_image(to_bytes(np.asarray(images))))

    return observe


def _generator(
    experiment: Experiment, tokenizer: Checkpoint, sampling: Sampling
) -> tuple[Any, Callable[[Params, Params], Any]]:
    """Generator of a prior, and its variables from those of prior and tokenizer."""
    config = experiment.prior
    if isinstance(config, MARConfig):
        length = config.sequence_length
        generator = MARGenerator(
            MAR(config),
            UnmaskingSchedule(length, min(_MAR_STEPS, length)),
            DiffusionSchedule(
                config.diffusion_steps, min(_HEAD_STEPS, config.diffusion_steps)
            ),
        )
        return generator, lambda prior, decoder: MARVariables(prior)
    if isinstance(config, NextScaleConfig):
        generator = one_model(NextScale(config), tokenizer.model.scales)
        return generator, lambda prior, decoder: NextScaleVariables(
            (prior,), {k: decoder[k] for k in QUANTIZER}
        )
    if experiment.train_prior.objective in MASKED_OBJECTIVES:
        length = config.sequence_length
        schedule = MaskingSchedule(length, min(_MASKED_STEPS, length))
        generator = MaskedGenerator(MaskedDiffusion(Transformer(config)), schedule)
        return generator, lambda prior, decoder: MaskedVariables(prior)
    target = Transformer(config).as_target(cfg=True)
    engine = Engine(target, config.sequence_length, order=active_steps(sampling))
    return engine, lambda prior, decoder: Variables(prior)


def _write(event: TrainingEvent, sheet: np.ndarray) -> Path:
    folder = event.workdir / SAMPLES
    folder.mkdir(exist_ok=True)
    file = folder / f"step_{event.step:06d}.png"
    write_file(file, png_bytes(sheet))
    return file
