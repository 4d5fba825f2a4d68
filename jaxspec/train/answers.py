"""Answers of a model of text to given prompts, as training data of its drafters."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxspec.checkpoint import digest_of
from jaxspec.data.text import TextSource
from jaxspec.errors import ConfigError, DataError
from jaxspec.io.text_files import read_lines
from jaxspec.io.writing import whole_file
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompt_inputs import read_prompts
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.settings import resolve_config
from jaxspec.speculative.trees.tree import Tree

# Tokens of an answer and of a training window, and answers generated together. One
# prompt of ten is held out.
ANSWER, WINDOW, BATCH, HELDOUT_EVERY = 128, 128, 16, 10


def answer_sources(
    folder: Path, file: Path, count: int, *, seed: int, cache_dir: Path
) -> tuple[TextSource, TextSource]:
    """Windows of prompts with the answers that a model gives, to train and held out.

    Answers are sampled with the model's recorded settings, or read where they are
    cached. Prompts take turns; every tenth is held out.

    Args:
      folder: bundle of the model of text.
      file: text file with one prompt a line.
      count: number of training answers.
      seed: seed of the sampling noise.
      cache_dir: folder of the cached answers.

    Raises:
      CheckpointError: the bundle cannot be used.
      ConfigError: the model makes no text or has no vocabulary, or `count` is below 1.
      DataError: the file has too few prompts.
    """
    if count < 1:
        raise ConfigError(f"{count} answers; give at least 1")
    lines = list(read_lines(file).values())
    if len(lines) < 2:
        raise DataError(f"'{file}' has one prompt; write more, one a line")
    bundle = load_bundle(folder)
    every = min(HELDOUT_EVERY, len(lines))
    prompts = read_prompts(bundle, lines)
    held = np.arange(len(lines)) % every == every - 1
    few = max(count // HELDOUT_EVERY, BATCH)
    parts = []
    for chosen, number, part_seed in ((~held, count, seed), (held, few, seed + 1)):
        indices = np.resize(np.flatnonzero(chosen), number)
        stream = _answers(bundle, prompts, indices, part_seed, cache_dir)
        if len(stream) < WINDOW:
            raise DataError(
                f"the answers to '{file}' have {len(stream)} tokens, fewer than "
                f"{WINDOW}; write more prompts"
            )
        parts.append(TextSource(stream, WINDOW))
    return parts[0], parts[1]


def _answers(
    bundle: Bundle, prompts: Prompts, indices: np.ndarray, seed: int, cache_dir: Path
) -> np.ndarray:
    """Prompts with their answers as one stream of tokens, uint32."""
    limits = {"max_new_tokens": ANSWER, "batch_size": BATCH}
    config = resolve_config(bundle, limits)
    asked = prompts.values[indices].tobytes()
    identity = repr((digest_of(bundle.prior), config, asked, seed))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = cache_dir / f"answers-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(indices), BATCH)
    files = [folder / f"{start:07d}.npy" for start in starts]
    programs, rows = {}, []
    missing = sum(not file.exists() for file in files)
    progress = {"total": missing, "desc": "answering", "unit": "batch"}
    with tqdm(**progress, disable=not missing) as bar:
        for start, file in zip(starts, files, strict=True):
            if not file.exists():
                chosen = np.resize(indices[start : start + BATCH], BATCH)
                stream = _batch(bundle, prompts, chosen, config, seed + start, programs)
                with whole_file(file) as out:
                    np.save(out, stream)
                bar.update()
            rows.append(np.load(file))
    return np.concatenate(rows)


def _batch(
    bundle: Bundle,
    prompts: Prompts,
    chosen: np.ndarray,
    config: GenerationConfig,
    seed: int,
    programs: dict,
) -> np.ndarray:
    """Prompts and answers of one batch, one behind the other."""
    given = prompts.values[chosen]
    result = generate(
        bundle,
        replace(prompts, values=given),
        replace(config, seed=seed),
        Tree.root(),
        programs=programs,
    )
    both = np.concatenate([given, result.tokens], axis=1)
    return both[both >= 0].astype(np.uint32)
