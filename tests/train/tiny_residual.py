"""Tiny preset of several tokens a cell, whose parts train in seconds."""

from dataclasses import replace

from jaxspec.config.residual import ResidualTokenizerConfig
from tests.train.tiny import get_config as grid_config


def get_config():
    base = grid_config()
    assert base.tokenizer is not None
    networks = replace(base.tokenizer, normalized="none", codebook_size=8)
    tokenizer = ResidualTokenizerConfig(networks, depth=3)
    prior = replace(
        base.prior, rope="sequence", max_length=tokenizer.length, vocab_size=24
    )
    return replace(
        base, name="tiny-residual", tokenizer=tokenizer, prior=prior, drafter=None
    )
