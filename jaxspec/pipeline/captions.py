"""Caption encoding: from texts to the features that a text-to-image prior reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import load_checkpoint, read_config
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.models.t5.model import TextEncoder
from jaxspec.models.transformer.prompts import Caption

TOKENIZER = "tokenizer.json"
# Skin tones and the two selectors of a character's look.
_MODIFIERS = re.compile("[\U0001f3fb-\U0001f3ff\ufe0e\ufe0f]")


@dataclass(frozen=True)
class Captions:
    """Captions and their features.

    Attributes:
      texts: caption of each image.
      features: features of all captions, on the host; see `Caption`.
    """

    texts: tuple[str, ...]
    features: Caption


def tokenize(file: Path, texts: Sequence[str], length: int) -> np.ndarray:
    """Token ids of texts, lower-cased and stripped.

    LlamaGen also cleans captions from the web (addresses, markup, brackets, dashes).
    This is not done here; it makes no difference for plain prompts.

    Args:
      file: `tokenizer.json` of the text encoder.
      texts: captions.
      length: number of positions `P`. Longer captions are cut; see `cut_captions`.

    Returns:
      int32 [B, P]: the tokens of each text, an end token, then -1.

    Raises:
      ConfigError: a text is empty or not valid Unicode.
      CheckpointError: the file is missing or damaged.
    """
    token_lists = _token_lists(file, texts, length)
    result = np.full((len(token_lists), length), -1, np.int32)
    for row, ids in zip(result, token_lists, strict=True):
        row[: len(ids)] = ids
    return result


def with_names(texts: Sequence[Any], names: Mapping[str, str]) -> list[Any]:
    """Captions in which characters that have names, such as emoji, are replaced.

    Skin tones and variation selectors are left out of captions with such characters.

    Args:
      texts: captions; what is no text is returned unchanged.
      names: names by characters, of which the longest that fits counts.
    """
    if not names or all(isinstance(text, str) and text.isascii() for text in texts):
        return list(texts)
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))

    def replaced(text: str) -> str:
        plain = _MODIFIERS.sub("", text)
        words = pattern.sub(lambda found: f" {names[found[0]]} ", plain)
        return text if words == plain else " ".join(words.split()).replace(" ,", ",")

    return [replaced(text) if isinstance(text, str) else text for text in texts]


def cut_captions(folder: Path, texts: Sequence[str]) -> dict[int, int]:
    """Finds the captions that are too long for the text encoder.

    Args:
      folder: a bundle's `text_encoder/`.
      texts: captions.

    Returns:
      Number of tokens of each caption that `read_captions` would cut, by its index.

    Raises:
      ConfigError: see `tokenize`.
      CheckpointError: see `tokenize`.
    """
    length = read_config(folder).config.length
    token_lists = _token_lists(folder / TOKENIZER, texts)
    return {i: len(ids) for i, ids in enumerate(token_lists) if len(ids) > length}


def _token_lists(
    file: Path, texts: Sequence[str], length: int | None = None
) -> list[list[int]]:
    """Tokens of each text with its end token, cut after `length`; see `tokenize`."""
    from tokenizers import Tokenizer

    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise ConfigError(f"prompt {empty[0]} is empty; describe the image")
    for i, text in enumerate(texts):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigError(f"prompt {i} is not UTF-8 text: {ascii(text)[:80]}")
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
    normalized = [text.lower().strip() for text in texts]
    encodings: list[Any] = tokenizer.encode_batch(normalized)
    return [encoding.ids for encoding in encodings]


def read_captions(
    folder: Path | None,
    texts: Sequence[str],
    names: Mapping[str, str] | None = None,
    *,
    batch: int = 8,
) -> Captions:
    """Encodes captions with a text encoder, which is loaded only for this call.

    Args:
      folder: a bundle's `text_encoder/`, or None if it has none.
      texts: caption of each image; equal captions are encoded once.
      names: names by characters, see `with_names`.
      batch: number of captions that are encoded together.

    Raises:
      CheckpointError: the folder does not exist or cannot be used.
      ConfigError: see `tokenize`.
    """
    if folder is None or not folder.is_dir():
        raise CheckpointError(
            "this bundle has no text_encoder/; convert one into it, such as "
            "google/flan-t5-xl"
        )
    checkpoint = load_checkpoint(folder, "text_encoder")
    model = TextEncoder(checkpoint.config)
    unique = list(dict.fromkeys(texts))
    named = with_names(unique, names or {})
    ids = tokenize(folder / TOKENIZER, named, checkpoint.config.length)
    if ids.max() >= checkpoint.config.vocab_size:
        raise CheckpointError(
            f"'{folder / TOKENIZER}' has token {ids.max()}, but the encoder has a "
            f"vocabulary of {checkpoint.config.vocab_size}; use the tokenizer of the "
            "encoder"
        )
    encode = jax.jit(model.caption)
    # The last batch is filled up with captions from the start: one compiled shape.
    order = np.resize(np.arange(len(unique)), -(-len(unique) // batch) * batch)
    parts = []
    for indices in order.reshape(-1, batch):
        tokens = jnp.asarray(ids[indices])
        caption = encode(checkpoint.params, jnp.maximum(tokens, 0), tokens >= 0)
        parts.append(jax.tree.map(np.asarray, caption))
    positions = [unique.index(text) for text in texts]
    features = jax.tree.map(lambda *x: np.concatenate(x)[positions], *parts)
    return Captions(tuple(texts), features)
