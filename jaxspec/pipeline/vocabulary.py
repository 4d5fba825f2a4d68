"""Vocabulary of a model of text: from texts to tokens and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.pipeline.bundle import Bundle

# Entry of a prior's metadata with its settings, see `convert.text.text_settings`.
SETTINGS = "text"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of texts, and the template of a conversation.

    Attributes:
      tokenizer: a `tokenizers.Tokenizer`.
      settings: template, and first and last tokens of a text; see
        `convert.text.text_settings`.
    """

    tokenizer: Any
    settings: dict[str, Any]

    @property
    def chats(self) -> bool:
        """Whether the model was trained to answer, so that prompts are questions."""
        return bool(self.settings.get("chat_template"))

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Tokens of a text.

        Args:
          text: text to continue, or message to answer.
          chat: whether to wrap it as the message of a user.

        Raises:
          ConfigError: there is no template for messages, or jinja2 is not installed.
        """
        if chat:
            return self._ids(self._conversation(text))
        ids = self._ids(text)
        begin = self.settings.get("bos_token")
        if self.settings.get("add_bos_token") and begin:
            ids = [self.tokenizer.token_to_id(begin), *ids]
        return ids

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text of tokens, without special ones."""
        return self.tokenizer.decode([int(token) for token in tokens])

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _conversation(self, text: str) -> str:
        """A message of a user, up to the beginning of the answer."""
        if not self.chats:
            raise ConfigError("this model has no chat template; use chat=False")
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(self.settings["chat_template"])
        return template.render(
            messages=[{"role": "user", "content": text}],
            add_generation_prompt=True,
            bos_token=self.settings.get("bos_token") or "",
            eos_token=self.settings.get("eos_token") or "",
        )


def vocabulary_of(bundle: Bundle) -> Vocabulary | None:
    """Vocabulary of a bundle's prior; None for images, and where tokens are bytes.

    Raises:
      CheckpointError: the file is damaged.
      ConfigError: the prior was converted without its vocabulary.
    """
    if bundle.vocabulary is None and SETTINGS in bundle.prior.metadata:
        raise ConfigError(
            f"bundle '{bundle.name}' was converted without a vocabulary, so it cannot "
            "read texts; convert it from a folder that holds its tokenizer.json"
        )
    if bundle.vocabulary is None:
        return None
    return Vocabulary(
        _read(bundle.vocabulary), dict(bundle.prior.metadata.get(SETTINGS, {}))
    )


@lru_cache(maxsize=4)
def _read(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        reason = str(error).splitlines()[0][:120]
        raise CheckpointError(f"'{file}' is damaged ({reason})") from None


def tokens_of(
    vocabulary: Vocabulary | None, texts: Sequence[str], chat: bool | None
) -> list[np.ndarray]:
    """Tokens int32 of each text.

    Args:
      vocabulary: vocabulary; None for bytes.
      texts: texts to continue, or messages to answer.
      chat: whether they are messages; None for what the model was trained for.

    Raises:
      ConfigError: a text is empty, or there is no template for messages.
    """
    if vocabulary is None:
        if chat:
            raise ConfigError("tokens of this model are bytes; use chat=False")
        rows = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    else:
        chat = vocabulary.chats if chat is None else chat
        rows = [np.array(vocabulary.encode(text, chat=chat), int) for text in texts]
    return [row.astype(np.int32) for row in rows]
