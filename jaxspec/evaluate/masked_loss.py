"""Loss of masked models over continuous tokens on held-out images."""

from functools import partial

import jax
import numpy as np

from jaxspec.core.noise import seed_key
from jaxspec.data.batches import heldout_batches
from jaxspec.data.image_tokens import Sequences
from jaxspec.mar.loss import masked_loss
from jaxspec.models.mar.model import MAR
from jaxspec.typing import Params


def heldout_masked_loss(
    model: MAR,
    params: Params,
    source: Sequences,
    *,
    batch: int = 32,
    most: int | None = None,
    seed: int = 0,
) -> float:
    """Mean of `masked_loss`, with the same masks, steps and noise for equal seeds.

    Args:
      model: static functions of the model.
      params: parameters of the model.
      source: means and standard deviations of the tokens of images.
      batch: images of a forward pass.
      most: largest number of images, evenly spaced; None for all.
      seed: seed of masks, steps and noise.
    """
    total, count, key = 0.0, 0, seed_key(seed)
    for i, part in enumerate(heldout_batches(len(source), most or len(source), batch)):
        latents = source.tokens[0, part].astype(np.float32)
        given = latents, source.prompts(part), np.zeros(len(part), bool)
        loss = _measure(model, params, *given, jax.random.fold_in(key, i))
        total, count = total + len(part) * float(loss), count + len(part)
    return total / count


@partial(jax.jit, static_argnums=0)
def _measure(model, params, *arguments):
    return masked_loss(model, params, *arguments)
