"""Feature cache: the target's outputs for all sequences, computed once, on disk."""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import Checkpoint, digest_of
from jaxspec.data.image_tokens import Sequences, TokenSource
from jaxspec.errors import ConfigError
from jaxspec.io.writing import whole_file
from jaxspec.models.transformer.model import Transformer

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def cached_layers(layers: int, feature_layers: tuple[int, ...]) -> tuple[int, ...]:
    """Layers whose outputs are cached: the feature layers, and the last for logits."""
    return tuple(sorted({*feature_layers, layers - 1}))


def cache_features(
    prior: Checkpoint,
    feature_layers: tuple[int, ...],
    source: Sequences,
    *,
    dtype: str,
    cache_dir: Path,
    batch: int = 16,
) -> np.ndarray:
    """Runs the target on all sequences, or opens the cache of an earlier run.

    Every sequence is read twice: with and without its condition.

    Args:
      prior: the target.
      feature_layers: indices of the layers that the drafter reads.
      source: sequences that are the same in every step.
      dtype: key of `DTYPES`, the data type on disk.
      cache_dir: folder of the cache file. It holds sequences x 2 x positions x layers
        x width numbers.
      batch: sequences per forward pass.

    Returns:
      A memory-mapped array [M n, 2, P + T, E], indexed by
      `TokenSource.sample_indices`: concatenated outputs of `cached_layers`, the
      conditional branch first.

    Raises:
      ConfigError: the sequences are sampled anew in each step (text).
    """
    if not isinstance(source, TokenSource):
        raise ConfigError(
            "the features of text cannot be cached, since its windows are sampled anew "
            "in each step; set cached='no'"
        )
    config, layers = prior.config, cached_layers(prior.config.layers, feature_layers)
    tokens = source.tokens.reshape(-1, source.tokens.shape[-1])
    width = len(layers) * config.width
    shape = (len(tokens), 2, config.prefix_length + tokens.shape[1], width)
    metadata = repr((digest_of(prior), source.digest, layers, dtype, shape))
    digest = hashlib.sha256(metadata.encode() + tokens.tobytes()).hexdigest()[:16]
    file, kind = cache_dir / f"features-{digest}.bin", np.dtype(DTYPES[dtype])
    if file.exists():
        return np.memmap(file, kind, "r", shape=shape)
    model = Transformer(config)

    @jax.jit
    def features_of(params, tokens, prompts):
        branches = []
        for null in (False, True):
            nulls = jnp.full(len(tokens), null)
            _, features = model.score(
                params, prompts, tokens, null=nulls, feature_layers=layers
            )
            branches.append(features)
        return jnp.stack(branches, axis=1).astype(kind)

    cache_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        size = math.prod(shape) * kind.itemsize
        title = f"caching features ({size / 1e9:.1f} GB)"
        with tqdm(total=len(tokens), desc=title, unit="sequence") as bar:
            for start in range(0, len(tokens), batch):
                indices = np.arange(start, start + batch) % len(tokens)
                count = min(batch, len(tokens) - start)
                prompts = source.prompts(indices % len(source))
                features = features_of(
                    prior.params, tokens[indices].astype(np.int32), prompts
                )
                stream.write(np.asarray(features)[:count].tobytes())
                bar.update(count)
    return np.memmap(file, kind, "r", shape=shape)
