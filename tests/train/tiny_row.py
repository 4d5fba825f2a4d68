"""Tiny preset of tokens in a row, whose three parts train in seconds."""

from dataclasses import replace

from jaxspec.config.one_d import OneDTokenizerConfig, ViTConfig
from tests.train.tiny import get_config as grid_config

VIT = ViTConfig(layers=1, width=16, heads=2)
TOKENIZER = OneDTokenizerConfig(
    image_size=32,
    patch_size=8,
    length=6,
    codebook_size=16,
    code_dim=4,
    encoder=VIT,
    decoder=VIT,
    pixels=None,
    mixed_order=False,
    prefixes=True,
)


def get_config():
    base = grid_config()
    prior = replace(base.prior, rope="sequence", max_length=TOKENIZER.length)
    drafter = replace(base.drafter, block_size=2)
    return replace(
        base, name="tiny-row", tokenizer=TOKENIZER, prior=prior, drafter=drafter
    )
