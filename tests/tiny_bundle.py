"""Small bundles with random weights, which compile fast."""

from dataclasses import replace

from jaxspec.checkpoint import Checkpoint, save
from jaxspec.config import (
    KLTokenizerConfig,
    MARConfig,
    MultiScaleTokenizerConfig,
    NextScaleConfig,
    TextEncoderConfig,
    TokenizerConfig,
)
from jaxspec.models.mar.model import MAR
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.t5.model import TextEncoder
from jaxspec.tokenizers.kl.model import KLTokenizer
from jaxspec.tokenizers.multi_scale.model import MultiScaleTokenizer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.text_encoder import train_vocabulary
from tests.models.tiny import random_params
from tests.next_scale.models import random_params as random_next_scale
from tests.params import random_like
from tests.train.tiny import get_config


def save_bundle(folder):
    """Writes `tokenizer/` and `prior/` of the tiny preset."""
    config = get_config()
    params = random_like(Tokenizer(config.tokenizer).init, seed=1)
    save(folder / "tokenizer", Checkpoint("tokenizer", config.tokenizer, params))
    params = random_params(config.prior)
    save(folder / "prior", Checkpoint("prior", config.prior, params))
    return folder


def save_masked_bundle(folder):
    """Writes a tiny bundle whose prior fills in masked tokens."""
    config = get_config()
    prior = replace(config.prior, extra_tokens=1)
    params = random_like(Tokenizer(config.tokenizer).init, seed=1)
    save(folder / "tokenizer", Checkpoint("tokenizer", config.tokenizer, params))
    checkpoint = Checkpoint(
        "prior", prior, random_params(prior), {"objective": "maskgit"}
    )
    save(folder / "prior", checkpoint)
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
    params = random_like(Tokenizer(config.tokenizer).init, seed=1)
    save(folder / "tokenizer", Checkpoint("tokenizer", config.tokenizer, params))
    checkpoint = Checkpoint("prior", prior, random_params(prior), metadata)
    save(folder / "prior", checkpoint)
    encoder = Checkpoint(
        "text_encoder", text, random_like(TextEncoder(text).init, seed=2)
    )
    notes = {"tokenizer.json": train_vocabulary(["a red apple, 3d"] * 3, 300)}
    save(folder / "text_encoder", encoder, notes)
    return folder


NETWORKS = TokenizerConfig(
    image_size=16,
    patch_size=4,
    channels=8,
    multipliers=(1,),
    encoder_blocks=1,
    decoder_blocks=1,
    attention="middle",
    groups=4,
    latent_channels=8,
    codebook_size=12,
    code_dim=4,
    normalized="none",
)


def save_next_scale_bundle(folder):
    """Writes a tiny bundle of a next-scale model, of 21 tokens an image."""
    tokenizer = MultiScaleTokenizerConfig(NETWORKS, (1, 2, 4), residual_convs=2)
    prior = NextScaleConfig(
        vocab_size=12,
        code_dim=4,
        layers=2,
        width=16,
        heads=4,
        scales=tokenizer.scales,
        classes=3,
    )
    params = random_like(MultiScaleTokenizer(tokenizer).init, seed=1)
    checkpoint = Checkpoint("multi_scale_tokenizer", tokenizer, params)
    save(folder / "tokenizer", checkpoint)
    params = random_next_scale(NextScale(prior))
    metadata = {"class_names": ["apple", "pear", "plum"]}
    save(folder / "prior", Checkpoint("next_scale", prior, params, metadata))
    return folder


def save_mar_bundle(folder):
    """Writes a tiny bundle of a model over 16 continuous tokens an image."""
    tokenizer = KLTokenizerConfig(replace(NETWORKS, codebook_size=1), scale=0.5)
    prior = MARConfig(
        channels=4,
        grid=4,
        encoder_layers=1,
        decoder_layers=1,
        width=16,
        heads=2,
        buffer=2,
        classes=3,
        head_layers=1,
        head_width=16,
    )
    params = random_like(KLTokenizer(tokenizer).init, seed=1)
    save(folder / "tokenizer", Checkpoint("kl_tokenizer", tokenizer, params))
    params = random_like(MAR(prior).init, spread=0.05)
    metadata = {"class_names": ["apple", "pear", "plum"]}
    save(folder / "prior", Checkpoint("mar", prior, params, metadata))
    return folder
