"""How well a prior predicts held-out codes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.data.codes import Sequences
from jaxspec.models.transformer import Transformer
from jaxspec.typing import Params


def likelihood_metrics(
    model: Transformer,
    params: Params,
    source: Sequences,
    *,
    batch: int = 16,
    most: int | None = None,
) -> dict[str, float]:
    """Measures a prior on codes that were not mirrored.

    Args:
      model: static functions of the prior.
      params: its parameters.
      source: codes and labels.
      batch: sequences side by side.
      most: at most so many sequences, spread over the split.

    Returns:
      "nll": mean negative log-likelihood of a code; "entropy": mean entropy of the
      predictions at the same places; both in nats.
    """

    count = min(most or len(source), len(source))
    # Spread over the split, whose order may follow the classes.
    rows = np.linspace(0, len(source) - 1, count).astype(np.int64)
    padded = np.resize(rows, -(-count // batch) * batch).reshape(-1, batch)
    values = [
        _measure(
            model, params, source.codes[0, part].astype(np.int32), source.labels[part]
        )
        for part in tqdm(padded, desc="measuring", leave=False)
    ]
    nll, entropy = (np.concatenate(x)[:count].mean() for x in zip(*values, strict=True))
    return {"nll": float(nll), "entropy": float(entropy)}


@partial(jax.jit, static_argnums=0)
def _measure(model, params, codes, labels):
    logits, _ = model.score(params, labels, codes[:, :-1])
    prefix = model.config.prefix_length
    log_p = jax.nn.log_softmax(logits[:, max(prefix - 1, 0) :])
    codes = codes if prefix else codes[:, 1:]
    taken = jnp.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return -jnp.mean(taken, axis=1), jnp.mean(entropy, axis=1)


def guided_nll(
    model: Transformer,
    params: Params,
    codes: np.ndarray,
    labels: np.ndarray,
    cfg_scale: float,
    *,
    batch: int = 16,
) -> float:
    """Mean negative log-likelihood of codes under the guided law, in nats a token.

    Args:
      model: static functions of the prior.
      params: its parameters.
      codes: int [n, T].
      labels: int [n].
      cfg_scale: scale; 1 is the conditional law.
      batch: sequences side by side.
    """
    padded = np.resize(np.arange(len(codes)), -(-len(codes) // batch) * batch)
    values = [
        _guided(model, params, codes[part], labels[part], jnp.float32(cfg_scale))
        for part in padded.reshape(-1, batch)
    ]
    return float(np.concatenate(values)[: len(codes)].mean())


@partial(jax.jit, static_argnums=0)
def _guided(model, params, codes, labels, cfg_scale):
    streams = [
        model.score(params, labels, codes[:, :-1], null=jnp.full(labels.shape, null))[0]
        for null in (False, True)
    ]
    conditional, unconditional = streams
    logits = unconditional + cfg_scale * (conditional - unconditional)
    log_p = jax.nn.log_softmax(logits[:, model.config.prefix_length - 1 :])
    taken = jnp.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]
    return -jnp.mean(taken, axis=1)
