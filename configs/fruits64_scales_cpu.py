"""Fruits-360 at 64x64, scale by scale, for a machine with a few CPU cores."""

from jaxspec.config import NextScaleConfig
from jaxspec.tokenizers.multi_scale.model import PRESETS
from jaxspec.train.experiment import Experiment
from jaxspec.train.settings import (
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
)


def get_config() -> Experiment:
    """Preset of a next-scale model beside the token-by-token one of `fruits64_cpu`."""
    tokenizer = PRESETS["scales-64"]
    return Experiment(
        name="fruits64-scales",
        data=DataConfig(
            name="fruits360_64",
            credit="Fruits-360, Copyright (c) 2017- Mihai Oltean",
            license="CC BY-SA 4.0",
            caveat="train and test show the same physical fruit from neighboring "
            "angles, so held-out figures are optimistic",
        ),
        tokenizer=tokenizer,
        prior=NextScaleConfig(
            vocab_size=tokenizer.codebook_size,
            code_dim=tokenizer.code_dim,
            layers=6,
            width=256,
            heads=4,
            ffn_width=512,
            scales=tokenizer.scales,
            classes=67,
        ),
        drafter=None,
        train_tokenizer=TokenizerTrainingConfig(
            steps=3000, batch=32, weight_decay=1e-4, ema=0.995
        ),
        train_prior=PriorTrainingConfig(
            steps=2000,
            batch=32,
            warmup=100,
            ema=0.995,
            evaluate_every=200,
            save_every=200,
        ),
        train_drafter=DrafterTrainingConfig(steps=1, batch=1),
    )
