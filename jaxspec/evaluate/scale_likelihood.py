"""Likelihood of tokens under a next-scale model."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.data.batches import evenly_spaced
from jaxspec.data.image_tokens import Sequences
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale.stages import Stage
from jaxspec.tokenizers.multi_scale.scales import Scales
from jaxspec.typing import Array, Bool, Float, Int, Params


def log_probs(
    model: NextScale,
    scales: Scales,
    params: Params,
    quantizer: Params,
    tokens: Int[Array, "B T"],
    classes: Int[Array, "B"],
    null: Bool[Array, "B"] | None = None,
    stages: Sequence[Stage] = (),
) -> Float[Array, "B T V"]:
    """Log-probabilities in nats of all tokens given all earlier scales of the data.

    Args:
      model: static functions of the model.
      scales: functions of its tokenizer.
      params: parameters of the model.
      quantizer: codebook and convolutions of the tokenizer.
      tokens: tokens of all scales.
      classes: class of each image.
      null: sequences that get the null class; None for none.
      stages: layers of each scale, see `Stage`; empty for all.
    """
    inputs = jax.lax.stop_gradient(scales.inputs(quantizer, tokens))
    if not stages:
        return jax.nn.log_softmax(model.score(params, classes, inputs, null=null))
    null = jnp.zeros(len(tokens), bool) if null is None else null
    condition = model.condition(params, classes, null)
    cache, parts, first = model.init_cache(len(tokens), condition.dtype), [], 0
    for stage, group in groupby(stages):
        last = first + len(list(group))
        here = slice(scales.tokens_of(first).start, scales.tokens_of(last - 1).stop)
        logits, cache = model.forward(
            params, condition, cache, inputs[:, here], first, last, stage.layers
        )
        parts.append(logits)
        first = last
    return jax.nn.log_softmax(jnp.concatenate(parts, axis=1))


def of_tokens(
    log_p: Float[Array, "B T V"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Log-probability of each token."""
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


def scale_likelihood(
    model: NextScale,
    scales: Scales,
    params: Params,
    quantizer: Params,
    source: Sequences,
    *,
    batch: int = 16,
    most: int | None = None,
    stages: Sequence[Stage] = (),
) -> dict[str, float]:
    """Measures a next-scale model on the original sequences of a source.

    Args:
      model: static functions of the model.
      scales: functions of its tokenizer.
      params: parameters of the model.
      quantizer: codebook and convolutions of the tokenizer.
      source: sequences and classes.
      batch: sequences per forward pass.
      most: largest number of sequences, evenly spaced in the source; None for all.
      stages: layers of each scale, see `Stage`; empty for all.

    Returns:
      A dict with "nll", the mean negative log-likelihood of a token, "entropy", the
      mean entropy of the predictions, and "nll_S" for the map of each side S, in nats.
    """
    count = min(most or len(source), len(source))
    indices = evenly_spaced(len(source), count)
    padded = np.resize(indices, -(-count // batch) * batch).reshape(-1, batch)
    parts = [
        _measure(
            model,
            scales,
            params,
            quantizer,
            source.tokens[0, part].astype(np.int32),
            source.prompts(part),
            tuple(stages),
        )
        for part in padded
    ]
    loss, entropy = (np.concatenate(x)[:count] for x in zip(*parts, strict=True))
    by_scale = {
        f"nll_{side}": float(loss[:, scales.tokens_of(k)].mean())
        for k, side in enumerate(scales.sides)
    }
    return {"nll": float(loss.mean()), "entropy": float(entropy.mean()), **by_scale}


@partial(jax.jit, static_argnums=(0, 1, 6))
def _measure(model, scales, params, quantizer, tokens, classes, stages):
    log_p = log_probs(model, scales, params, quantizer, tokens, classes, stages=stages)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return -of_tokens(log_p, tokens), jnp.mean(entropy, axis=1)
