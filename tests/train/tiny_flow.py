"""Tiny preset of a tokenizer with a flow, whose parts train in seconds."""

from dataclasses import replace

from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.one_d import ViTConfig
from tests.train.tiny import get_config as grid_config

VIT = ViTConfig(layers=2, width=32, heads=2)
# A patch has 48 numbers, and noise must pass.
FLOW = ViTConfig(layers=1, width=64, heads=2)
TOKENIZER = FlowTokenizerConfig(
    image_size=32,
    patch_size=4,
    length=6,
    levels=(5, 5),
    encoder=VIT,
    decoder=FLOW,
    steps=6,
    guidance=1.5,
)


def get_config():
    base = grid_config()
    prior = replace(
        base.prior,
        rope="sequence",
        max_length=TOKENIZER.length,
        vocab_size=TOKENIZER.codebook_size,
    )
    drafter = replace(base.drafter, block_size=2)
    return replace(
        base, name="tiny-flow", tokenizer=TOKENIZER, prior=prior, drafter=drafter
    )
