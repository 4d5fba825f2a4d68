"""A random model of text with a vocabulary, converted from a GGUF file."""

import numpy as np
from tokenizers import pre_tokenizers

from jaxspec.convert.conversion import convert
from tests.convert import gguf_files, gguf_models

# Tokens of a byte-level vocabulary: every byte, one merged pair, and special tokens.
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*BYTES, "th", "<user>", "<end>", "<begin>"]
END = TOKENS.index("<end>")
TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<user>{% endif %}"
)
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 3) + [3] * 3,
    "tokenizer.ggml.merges": ["t h"],
    "tokenizer.ggml.eos_token_id": END,
    "tokenizer.ggml.bos_token_id": TOKENS.index("<begin>"),
    "tokenizer.chat_template": TEMPLATE,
}


def write_model(folder, **changes):
    """Writes the model, and returns the folder of its bundle."""
    rng = np.random.default_rng(0)
    tensors = {ours: x for _, (ours, x) in gguf_models.weights().items()}
    embedding = rng.standard_normal((len(TOKENS), gguf_models.WIDTH))
    tensors["token_embd.weight"] = embedding.astype(np.float32)
    file = folder / "model.gguf"
    metadata = gguf_models.metadata(**VOCABULARY | changes)
    gguf_files.write(file, metadata, tensors)
    convert(file, folder / "bundle")
    return folder / "bundle"
