"""Tiny preset of captioned emoji whose parts train in seconds."""

from dataclasses import replace

from jaxspec.config import TextEncoderConfig
from jaxspec.train.settings import DataConfig, TrainingConfig
from tests.train.tiny import get_config as classes_config


def get_config():
    base = classes_config()
    short = {"warmup": 2, "log_every": 1, "evaluate_every": 4, "save_every": 4}
    text = TextEncoderConfig(
        vocab_size=300, layers=1, width=16, heads=2, head_dim=8, ffn_width=32, length=12
    )
    assert base.tokenizer is not None
    return replace(
        base,
        name="tiny-emoji",
        data=DataConfig("emoji64", flips=False, matcher_split="train+test"),
        tokenizer=replace(base.tokenizer, image_size=64, patch_size=16),
        prior=replace(
            base.prior,
            condition="caption",
            caption_length=text.length,
            caption_width=text.width,
        ),
        text_encoder=text,
        train_matcher=TrainingConfig(steps=8, batch=8, **short),
    )
