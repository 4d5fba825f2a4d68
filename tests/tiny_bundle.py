"""Small bundles with random weights, which compile fast."""

from dataclasses import replace

import jax

from jaxspec.checkpoint import Checkpoint, save
from jaxspec.config import TextEncoderConfig
from jaxspec.models.t5.model import TextEncoder
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.text_encoder import train_vocabulary
from tests.models.tiny import random_params
from tests.train.tiny import get_config


def save_bundle(folder):
    """Writes `tokenizer/` and `prior/` of the tiny preset."""
    config = get_config()
    params = Tokenizer(config.tokenizer).init(jax.random.key(1))
    save(folder / "tokenizer", Checkpoint("tokenizer", config.tokenizer, params))
    params = random_params(config.prior)
    save(folder / "prior", Checkpoint("prior", config.prior, params))
    return folder


def save_captioned_bundle(folder, **metadata):
    """Writes a tiny bundle whose prior reads captions, with its text encoder.

    Args:
      folder: folder of the bundle.
      **metadata: entries of the prior's metadata.
    """
    config = get_config()
    text = TextEncoderConfig(
        vocab_size=300, layers=1, width=16, heads=2, head_dim=8, ffn_width=32, length=8
    )
    prior = replace(
        config.prior,
        condition="caption",
        caption_length=text.length,
        caption_width=text.width,
    )
    params = Tokenizer(config.tokenizer).init(jax.random.key(1))
    save(folder / "tokenizer", Checkpoint("tokenizer", config.tokenizer, params))
    checkpoint = Checkpoint("prior", prior, random_params(prior), metadata)
    save(folder / "prior", checkpoint)
    encoder = Checkpoint(
        "text_encoder", text, TextEncoder(text).init(jax.random.key(2))
    )
    notes = {"tokenizer.json": train_vocabulary(["a red apple, 3d"] * 3, 300)}
    save(folder / "text_encoder", encoder, notes)
    return folder
