"""Sequences that the target itself draws, to train its drafters on."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import Checkpoint, digest_of
from jaxspec.data.codes import CodeSource
from jaxspec.errors import ConfigError, NonFiniteError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.loop import generate
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import active_steps, make_sampling
from jaxspec.spec.state import Engine
from jaxspec.writing import whole_file


def draw_source(
    prior: Checkpoint,
    count: int,
    *,
    cfg_scale: float,
    seed: int,
    cache_dir: Path,
    batch: int = 64,
) -> CodeSource:
    """Draws codes plainly at temperature 1, or reads what an earlier run kept.

    Args:
      prior: the target; conditioned on a class.
      count: sequences, evenly spread over the classes.
      cfg_scale: scales are drawn evenly between 1 and this, one a sequence.
      seed: of scales and noise.
      cache_dir: where codes are kept.
      batch: sequences side by side.

    Raises:
      ConfigError: the target takes no class.
      NonFiniteError: it gave NaN.
    """
    config = prior.config
    if config.condition != "class":
        raise ConfigError("drawn sequences need a target that is given a class")
    metadata = repr((digest_of(prior), config, count, cfg_scale, seed))
    digest = hashlib.sha256(metadata.encode()).hexdigest()[:16]
    labels = (np.arange(count) * config.classes // count).astype(np.int32)
    file = cache_dir / f"drawn-{digest}.npy"
    if file.exists():
        return CodeSource(np.load(file), labels, digest)
    target = make_target(Transformer(config), guided=cfg_scale > 1)
    some = make_sampling(batch, cfg_scale=2.0 if cfg_scale > 1 else 1.0)
    engine = Engine(target, config.sequence_length, order=active_steps(some))
    run = jax.jit(partial(generate, engine))
    scales = np.random.default_rng(seed).uniform(1.0, max(cfg_scale, 1.0), count)
    keys, parts = batch_keys(seed, count), []
    with tqdm(total=count, desc="drawing with the target", unit="sequence") as bar:
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch) % count
            sampling = replace(some, cfg_scale=scales[rows].astype(np.float32))
            out = run(prior.params, None, labels[rows], sampling, keys[rows])
            if not bool(out.finite.all()):
                raise NonFiniteError("the target gave NaN; its weights are unusable")
            parts.append(np.asarray(out.tokens))
            bar.update(min(batch, count - start))
    kind = np.uint16 if config.vocab_size <= 1 << 16 else np.int32
    codes = np.concatenate(parts)[None, :count].astype(kind)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        np.save(stream, codes)
    return CodeSource(codes, labels, digest)
