"""Tiny preset of a masked model over continuous tokens."""

from dataclasses import replace

from jaxspec.config import KLTokenizerConfig, MARConfig
from tests.train.tiny import get_config as grid_config


def get_config():
    base = grid_config()
    assert base.tokenizer is not None
    networks = replace(base.tokenizer, normalized="none", codebook_size=1)
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
        diffusion_steps=50,
    )
    tokenizer = KLTokenizerConfig(networks, scale=1.0)
    return replace(
        base, name="tiny-mar", tokenizer=tokenizer, prior=prior, drafter=None
    )
