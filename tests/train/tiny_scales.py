"""Tiny preset of a next-scale model, whose two parts train in seconds."""

from dataclasses import replace

from jaxspec.config import MultiScaleTokenizerConfig, NextScaleConfig
from tests.train.tiny import get_config as grid_config


def get_config():
    base = grid_config()
    assert base.tokenizer is not None
    tokenizer = MultiScaleTokenizerConfig(
        replace(base.tokenizer, normalized="none"), (1, 2, 4), residual_convs=2
    )
    prior = NextScaleConfig(
        vocab_size=16,
        code_dim=4,
        layers=2,
        width=16,
        heads=2,
        scales=tokenizer.scales,
        classes=3,
    )
    return replace(
        base, name="tiny-scales", tokenizer=tokenizer, prior=prior, drafter=None
    )
