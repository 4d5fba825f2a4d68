"""Captions to the features that a text-to-image prior reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import load_checkpoint, read_config
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.models.t5 import TextEncoder
from jaxspec.models.transformer import Caption

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Captions:
    """Texts and what the prior reads of them.

    Attributes:
      texts: one an image.
      features: of all, on the host; see `Caption`.
    """

    texts: tuple[str, ...]
    features: Caption


def tokenize(file: Path, texts: Sequence[str], length: int) -> np.ndarray:
    """Tokens int32 `[n, P]`, an end mark behind each text, then -1.

    Texts are lower-cased and stripped, and cut after `length` tokens: see
    `cut_captions`. LlamaGen also
    cleans captions of the web (addresses, mark-up, brackets, dashes), which is not done
    here; plain prompts come out alike.

    Raises:
      ConfigError: see `_encoded`.
      CheckpointError: likewise.
    """
    rows = _encoded(file, texts, length)
    result = np.full((len(rows), length), -1, np.int32)
    for row, ids in zip(result, rows, strict=True):
        row[: len(ids)] = ids
    return result


def cut_captions(folder: Path, texts: Sequence[str]) -> dict[int, int]:
    """Tokens of the texts that `read_captions` would cut, by their place in `texts`.

    Raises:
      ConfigError: see `_encoded`.
      CheckpointError: likewise.
    """
    most = read_config(folder).config.length
    rows = _encoded(folder / TOKENIZER, texts)
    return {i: len(ids) for i, ids in enumerate(rows) if len(ids) > most}


def _encoded(
    file: Path, texts: Sequence[str], length: int | None = None
) -> list[list[int]]:
    """Tokens of each text with its end mark, cut after `length`.

    Raises:
      ConfigError: the package that reads the file is not installed, or a text is empty
        or no Unicode.
      CheckpointError: the file is missing or damaged.
    """
    try:
        from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "captions need the package tokenizers: pip install 'jaxspec-decoding[text]'"
        ) from None
    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise ConfigError(f"prompt {empty[0]} is empty; describe the image")
    for i, text in enumerate(texts):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigError(f"prompt {i} is no UTF-8 text: {ascii(text)[:80]}")
    if not file.is_file():
        raise CheckpointError(
            f"'{file}' is missing; convert the text encoder from a folder that holds "
            f"its {TOKENIZER}"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        reason = str(error).splitlines()[0][:120]
        raise CheckpointError(f"'{file}' is damaged ({reason})") from None
    tokenizer.no_padding()
    if length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(length)
    rows: list[Any] = tokenizer.encode_batch([text.lower().strip() for text in texts])
    return [row.ids for row in rows]


def read_captions(
    folder: Path | None, texts: Sequence[str], *, batch: int = 8
) -> Captions:
    """Encodes texts; the encoder is loaded for this and let go again.

    Args:
      folder: a bundle's `text_encoder/`.
      texts: one an image; equal ones are encoded once.
      batch: texts at a time.

    Raises:
      CheckpointError: there is no such folder, or it cannot be used.
      ConfigError: see `tokenize`.
    """
    if folder is None or not folder.is_dir():
        raise CheckpointError(
            "this bundle has no text_encoder/; convert one into it, such as "
            "google/flan-t5-xl"
        )
    checkpoint = load_checkpoint(folder, "text_encoder")
    model = TextEncoder(checkpoint.config)
    different = list(dict.fromkeys(texts))
    ids = tokenize(folder / TOKENIZER, different, checkpoint.config.length)
    if ids.max() >= checkpoint.config.vocab_size:
        raise CheckpointError(
            f"'{folder / TOKENIZER}' makes token {ids.max()}, the encoder knows "
            f"{checkpoint.config.vocab_size}; they do not belong together"
        )
    encode = jax.jit(model.caption)
    rows = np.resize(np.arange(len(different)), -(-len(different) // batch) * batch)
    parts = []
    for some in rows.reshape(-1, batch):
        given = jnp.asarray(ids[some])
        caption = encode(checkpoint.params, jnp.maximum(given, 0), given >= 0)
        parts.append(jax.tree.map(np.asarray, caption))
    where = [different.index(text) for text in texts]
    whole = jax.tree.map(lambda *x: np.concatenate(x)[where], *parts)
    return Captions(tuple(texts), whole)
