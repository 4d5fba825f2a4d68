"""Vocabulary of a GGUF file as the `tokenizer.json` of the package tokenizers."""

from typing import Any

PREFIX = "tokenizer.ggml."
# Kinds of tokens that texts are not split into, by their code.
CONTROL, USER_DEFINED = 3, 4
# Splitting of texts into words before pairs of tokens are merged, by the name of the
# model that introduced it: a regular expression, or None for that of GPT-2.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}" + (
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _WORDS.format(digits=r"\p{N}{1,3}"),
    "qwen2": _WORDS.format(digits=r"\p{N}"),
}
SINGLE_DIGITS = ("smollm",)


def tokenizer_json(metadata: dict[str, Any]) -> str | None:
    """Text of the `tokenizer.json` of a byte-level vocabulary.

    Args:
      metadata: metadata of a GGUF file.

    Returns:
      The text; None if the file has no vocabulary, or one of another kind.
    """
    split = metadata.get(PREFIX + "pre", "default")
    if metadata.get(PREFIX + "model") != "gpt2" or split not in SPLITS:
        return None
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )

    tokens = metadata[PREFIX + "tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in metadata[PREFIX + "merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    pattern = SPLITS[split]
    steps: list[Any] = []
    if split in SINGLE_DIGITS:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    plain = pattern is None
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata.get(PREFIX + "token_type", [])
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (CONTROL, USER_DEFINED):
            special = kind == CONTROL
            added = [AddedToken(token, normalized=False, special=special)]
            add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
            add(added)
    return tokenizer.to_str()


def text_settings(metadata: dict[str, Any]) -> dict[str, Any]:
    """Settings of a model of text: see `convert.text.text_settings`.

    Args:
      metadata: metadata of a GGUF file.
    """
    tokens = metadata.get(PREFIX + "tokens", [])

    def token(name: str) -> str | None:
        index = metadata.get(f"{PREFIX}{name}_token_id")
        return tokens[index] if index is not None and index < len(tokens) else None

    stops = (metadata.get(f"{PREFIX}{name}_token_id") for name in ("eos", "eot"))
    return {
        "chat_template": metadata.get("tokenizer.chat_template"),
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "add_bos_token": bool(metadata.get(PREFIX + "add_bos_token", False)),
        "stop_tokens": sorted({stop for stop in stops if stop is not None}),
    }
