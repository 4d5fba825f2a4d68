"""Fruits-360 at 64x64 for one large GPU, intended to take minutes for each part."""

from jaxspec.config import TransformerConfig
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.tokenizers.vqgan.model import PRESETS
from jaxspec.train.experiment import Experiment
from jaxspec.train.settings import (
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
)


def get_config() -> Experiment:
    """Preset with the data and grid of `fruits64_cpu`, longer training and dropout."""
    return Experiment(
        name="fruits64",
        data=DataConfig(
            name="fruits360_64",
            credit="Fruits-360, Copyright (c) 2017- Mihai Oltean",
            license="CC BY-SA 4.0",
            caveat="train and test show the same physical fruit from neighboring "
            "angles, so held-out figures are optimistic",
        ),
        tokenizer=PRESETS["small-64"],
        prior=TransformerConfig(
            vocab_size=1024, layers=8, width=256, heads=4, grid=16, classes=67
        ),
        drafter=DFlashConfig(
            block_size=8,
            layers=2,
            width=256,
            heads=4,
            ffn_width=768,
            feature_layers=(1, 4, 7),
            markov_rank=64,
        ),
        train_tokenizer=TokenizerTrainingConfig(
            steps=5000,
            batch=256,
            weight_decay=1e-4,
            compute_dtype="bfloat16",
        ),
        train_prior=PriorTrainingConfig(
            steps=4000, batch=128, warmup=200, compute_dtype="bfloat16"
        ),
        train_drafter=DrafterTrainingConfig(
            steps=3000, batch=64, warmup=100, compute_dtype="bfloat16"
        ),
    )
