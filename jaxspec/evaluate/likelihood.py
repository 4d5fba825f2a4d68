"""Likelihood of tokens under a prior."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.data.batches import evenly_spaced
from jaxspec.data.image_tokens import Sequences
from jaxspec.models.transformer.model import Transformer
from jaxspec.typing import Params


def likelihood_metrics(
    model: Transformer,
    params: Params,
    source: Sequences,
    *,
    batch: int = 16,
    most: int | None = None,
) -> dict[str, float]:
    """Measures a prior on the original (not mirrored) sequences of a source.

    Args:
      model: static functions of the prior.
      params: parameters of the prior.
      source: sequences and prompts.
      batch: sequences per forward pass.
      most: largest number of sequences, evenly spaced in the source; None for all.

    Returns:
      A dict with "nll", the mean negative log-likelihood of a token, and "entropy", the
      mean entropy of the predictions at the same positions, both in nats.
    """

    count = min(most or len(source), len(source))
    indices = evenly_spaced(len(source), count)
    padded = np.resize(indices, -(-count // batch) * batch).reshape(-1, batch)
    values = [
        _measure(
            model, params, source.tokens[0, part].astype(np.int32), source.prompts(part)
        )
        for part in tqdm(padded, desc="measuring", leave=False)
    ]
    nll, entropy = (np.concatenate(x)[:count].mean() for x in zip(*values, strict=True))
    return {"nll": float(nll), "entropy": float(entropy)}


@partial(jax.jit, static_argnums=0)
def _measure(model, params, tokens, prompts):
    logits, _ = model.score(params, prompts, tokens[:, :-1])
    prefix = model.config.prefix_length
    log_p = jax.nn.log_softmax(logits[:, max(prefix - 1, 0) :])
    tokens = tokens if prefix else tokens[:, 1:]
    taken = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return -jnp.mean(taken, axis=1), jnp.mean(entropy, axis=1)


def guided_nll(
    model: Transformer,
    params: Params,
    tokens: np.ndarray,
    labels: np.ndarray,
    cfg_scale: float,
    *,
    batch: int = 16,
) -> float:
    """Mean negative log-likelihood of tokens after CFG, in nats per token.

    Args:
      model: static functions of the prior.
      params: parameters of the prior.
      tokens: integer [n, T], sequences to measure.
      labels: integer [n], classes.
      cfg_scale: CFG scale; 1 for the conditional distribution.
      batch: sequences per forward pass.
    """
    padded = np.resize(np.arange(len(tokens)), -(-len(tokens) // batch) * batch)
    values = [
        _guided_nll(model, params, tokens[part], labels[part], jnp.float32(cfg_scale))
        for part in padded.reshape(-1, batch)
    ]
    return float(np.concatenate(values)[: len(tokens)].mean())


@partial(jax.jit, static_argnums=0)
def _guided_nll(model, params, tokens, labels, cfg_scale):
    known = tokens[:, :-1]
    conditional, unconditional = (
        model.score(params, labels, known, null=jnp.full(labels.shape, null))[0]
        for null in (False, True)
    )
    logits = unconditional + cfg_scale * (conditional - unconditional)
    log_p = jax.nn.log_softmax(logits[:, model.config.prefix_length - 1 :])
    taken = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    return -jnp.mean(taken, axis=1)
