"""What the target says of every sequence, computed once and kept on disk."""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import Checkpoint, digest_of
from jaxspec.data.codes import CodeSource, Sequences
from jaxspec.errors import ConfigError
from jaxspec.models.transformer import Transformer
from jaxspec.writing import whole_file

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def kept_layers(layers: int, feature_layers: tuple[int, ...]) -> tuple[int, ...]:
    """Layers whose outputs are kept: the tapped ones, and the last for the scores."""
    return tuple(sorted({*feature_layers, layers - 1}))


def keep_features(
    prior: Checkpoint,
    feature_layers: tuple[int, ...],
    source: Sequences,
    *,
    dtype: str,
    cache_dir: Path,
    batch: int = 16,
) -> np.ndarray:
    """Reads all sequences with and without their condition, or finds what was kept.

    Args:
      prior: the target.
      feature_layers: layers that the drafter reads.
      source: sequences that stay the same from step to step.
      dtype: a key of `DTYPES`.
      cache_dir: where the numbers are kept: sequences x 2 x positions x layers x width.
      batch: sequences side by side.

    Returns:
      A memory-mapped array [M n, 2, U, E] by row of `CodeSource.rows`: outputs of
      `kept_layers` side by side, conditional first.

    Raises:
      ConfigError: the sequences are cut anew in every step (text).
    """
    if not isinstance(source, CodeSource):
        raise ConfigError(
            "features are kept of sequences that stay the same; text is cut anew in "
            "every step: set cached='no'"
        )
    config, layers = prior.config, kept_layers(prior.config.layers, feature_layers)
    codes = source.codes.reshape(-1, source.codes.shape[-1])
    width = len(layers) * config.width
    shape = (len(codes), 2, config.prefix_length + codes.shape[1], width)
    metadata = repr((digest_of(prior), layers, dtype, shape))
    digest = hashlib.sha256(metadata.encode() + codes.tobytes()).hexdigest()[:16]
    file, kind = cache_dir / f"features-{digest}.bin", np.dtype(DTYPES[dtype])
    if file.exists():
        return np.memmap(file, kind, "r", shape=shape)
    model = Transformer(config)

    @jax.jit
    def read(params, codes, labels):
        streams = []
        for null in (False, True):
            nulls = jnp.full(labels.shape, null)
            _, features = model.score(
                params, labels, codes, null=nulls, feature_layers=layers
            )
            streams.append(features)
        return jnp.stack(streams, axis=1).astype(kind)

    cache_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        size = math.prod(shape) * kind.itemsize
        title = f"keeping features ({size / 1e9:.1f} GB)"
        with tqdm(total=len(codes), desc=title, unit="sequence") as bar:
            for start in range(0, len(codes), batch):
                rows = np.arange(start, start + batch) % len(codes)
                count = min(batch, len(codes) - start)
                labels = source.labels[rows % len(source)]
                some = read(prior.params, codes[rows].astype(np.int32), labels)
                stream.write(np.asarray(some)[:count].tobytes())
                bar.update(count)
    return np.memmap(file, kind, "r", shape=shape)
