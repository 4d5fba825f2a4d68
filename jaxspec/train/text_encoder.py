"""Text encoder that is trained together with a prior over captioned images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.data.image_tokens import Sequences, TokenSource
from jaxspec.models.t5.model import TextEncoder
from jaxspec.models.transformer.prompts import Caption
from jaxspec.typing import Array, Int, Params, PyTree

PRIOR, ENCODER = "prior", "text_encoder"
END = "</s>"


def train_vocabulary(captions: Sequence[str], size: int) -> str:
    """Trains a byte-pair vocabulary on captions.

    Text is lower-cased, as captions are when images are generated, and variation
    selectors of emoji are removed. Bytes are the smallest units, so every text has
    tokens.

    Args:
      captions: training captions.
      size: number of tokens, at least 257.

    Returns:
      Content of a `tokenizer.json`, whose encodings end with an end token.
    """
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace("\ufe0f", ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer.to_str()


def encode_captions(
    encoder: TextEncoder, params: Params, captions: Int[Array | np.ndarray, "B P"]
) -> Caption:
    """Features of captions, with -1 after shorter ones."""
    captions = jnp.asarray(captions)
    return encoder.caption(params, jnp.maximum(captions, 0), captions >= 0)


def joined_params(prior: Params, encoder: Params) -> Params:
    """Parameters of a prior and its text encoder as one pytree."""
    return {PRIOR: prior, ENCODER: encoder}


def split_params(
    encoder: TextEncoder | None, params: Params
) -> tuple[Params, Params | None]:
    """Parameters of the prior, and of the text encoder if there is one."""
    if encoder is None:
        return params, None
    return params[PRIOR], params[ENCODER]


def encoded(
    encoder: TextEncoder | None, params: Params, prompts: PyTree
) -> tuple[Params, PyTree]:
    """The prior's parameters, and prompts as it takes them; differentiable.

    Args:
      encoder: text encoder; None to change nothing.
      params: parameters of the prior, or of both.
      prompts: conditions of the sequences; with an encoder captions int32 [B, P].
    """
    prior, encoder_params = split_params(encoder, params)
    if encoder is None:
        return prior, prompts
    return prior, encode_captions(encoder, encoder_params, prompts)


def with_encoder(
    encoder: TextEncoder | None, params: Params, source: Sequences
) -> tuple[Params, Sequences]:
    """The prior's parameters, and a source whose prompts are encoded.

    Args:
      encoder: text encoder; None to change nothing.
      params: parameters of the prior, or of both.
      source: sequences with captions.
    """
    prior, encoder_params = split_params(encoder, params)
    if encoder is None:
        return prior, source
    assert isinstance(source, TokenSource)
    return prior, bound_source(encoder, encoder_params, source)


def bound_source(
    encoder: TextEncoder, params: Params, source: TokenSource
) -> TokenSource:
    """A source of captions whose prompts are encoded."""
    program = _program(encoder)
    return replace(source, encode=lambda captions: program(params, captions))


@lru_cache(maxsize=2)
def _program(encoder: TextEncoder) -> Any:
    return jax.jit(lambda params, captions: encode_captions(encoder, params, captions))
