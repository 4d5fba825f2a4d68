"""Vocabulary and settings of a model of text, from the files of its release."""

import json
from pathlib import Path
from typing import Any

from jaxspec.convert.reading.source import Source
from jaxspec.errors import DataError
from jaxspec.io.text_files import read_text

# Families whose models continue texts.
FAMILIES = ("llama", "qwen2", "qwen3")
VOCABULARY = "tokenizer.json"


def vocabulary_of(source: Source) -> str | None:
    """Text of a model's `tokenizer.json`; None if its release has none.

    Raises:
      ConfigError: the package `tokenizers` is needed and not installed.
    """
    if source.vocabulary is not None:
        return source.vocabulary()
    file = (source.folder or Path()) / VOCABULARY
    return read_text(file) if file.is_file() else None


def text_settings(source: Source) -> dict[str, Any]:
    """Settings that a model of text was released with.

    Args:
      source: files of the model.

    Returns:
      "chat_template", the Jinja template of a conversation; "bos_token", "eos_token";
      "add_bos_token", whether every text begins with the first of these; and
      "stop_tokens", ids that end a text. What the release does not have is None or
      empty.

    Raises:
      DataError: a file is damaged.
    """
    if source.text is not None:
        return dict(source.text)
    folder = source.folder or Path()
    entries = _object(folder / "tokenizer_config.json")
    generation = _object(folder / "generation_config.json")
    template, file = entries.get("chat_template"), folder / "chat_template.jinja"
    if file.is_file():
        template = read_text(file)
    stops = generation.get("eos_token_id", source.config.get("eos_token_id"))
    stops = stops if isinstance(stops, list) else [stops]
    return {
        "chat_template": template if isinstance(template, str) else None,
        "bos_token": _token(entries.get("bos_token")),
        "eos_token": _token(entries.get("eos_token")),
        "add_bos_token": bool(entries.get("add_bos_token", False)),
        "stop_tokens": [stop for stop in stops if isinstance(stop, int)],
    }


def _object(file: Path) -> dict[str, Any]:
    """Contents of a JSON file; empty if there is none."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(read_text(file)))
    except (ValueError, TypeError):
        raise DataError(f"'{file}' is no JSON object; fetch it again") from None


def _token(entry: Any) -> str | None:
    """A token that is given as text or as an object with its content."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None
