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
from jaxspec.spec.noise import row_keys
from jaxspec.spec.sampling import active_steps, make_sampling
from jaxspec.spec.state import Engine
from jaxspec.writing import whole_file


def draw_source(
    prior: Checkpoint,
    count: int,
    *,
    guidance: float,
    seed: int,
    cache_dir: Path,
    batch: int = 64,
) -> CodeSource:
    """Draws codes plainly at temperature 1, or reads what an earlier run kept.

    Args:
      prior: the target; conditioned on a class.
      count: sequences, evenly spread over the classes.
      guidance: scales are drawn evenly between 1 and this, one a sequence.
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
    about = repr((digest_of(prior), config, count, guidance, seed))
    digest = hashlib.sha256(about.encode()).hexdigest()[:16]
    labels = (np.arange(count) * config.classes // count).astype(np.int32)
    file = cache_dir / f"drawn-{digest}.npy"
    if file.exists():
        return CodeSource(np.load(file), labels, digest)
    target = make_target(Transformer(config), guided=guidance > 1)
    some = make_sampling(batch, guidance=2.0 if guidance > 1 else 1.0)
    engine = Engine(target, config.sequence_length, order=active_steps(some))
    run = jax.jit(partial(generate, engine))
    scales = np.random.default_rng(seed).uniform(1.0, max(guidance, 1.0), count)
    keys, parts = row_keys(seed, count), []
    with tqdm(total=count, desc="drawing with the target", unit="sequence") as bar:
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch) % count
            sampling = replace(some, guidance=scales[rows].astype(np.float32))
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
