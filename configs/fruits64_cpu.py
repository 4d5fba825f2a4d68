"""Fruits-360 at 64x64 for a machine with a few CPU cores: about 90 minutes on two."""

from dataclasses import replace

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
    """Preset of the embedded default checkpoint."""
    return Experiment(
        name="fruits64",
        data=DataConfig(
            name="fruits360_64",
            credit="Fruits-360, Copyright (c) 2017- Mihai Oltean",
            license="CC BY-SA 4.0",
            caveat="train and test show the same physical fruit from neighboring "
            "angles, so held-out figures are optimistic",
        ),
        tokenizer=replace(
            PRESETS["small-64"],
            channels=64,
            encoder_blocks=1,
            decoder_blocks=2,
            latent_channels=64,
        ),
        prior=TransformerConfig(
            vocab_size=1024,
            layers=6,
            width=256,
            heads=4,
            grid=16,
            classes=67,
            # Mirrored images are enough regularization for two epochs.
            token_dropout=0.0,
            residual_dropout=0.0,
            ffn_dropout=0.0,
        ),
        drafter=DFlashConfig(
            block_size=8,
            layers=2,
            width=256,
            heads=4,
            ffn_width=768,
            feature_layers=(1, 3, 5),
            markov_rank=64,
        ),
        train_tokenizer=TokenizerTrainingConfig(
            steps=3000, batch=64, weight_decay=1e-4, ema=0.995
        ),
        train_prior=PriorTrainingConfig(
            steps=1800,
            batch=16,
            warmup=150,
            ema=0.997,
            evaluate_every=300,
            save_every=300,
        ),
        train_drafter=DrafterTrainingConfig(
            steps=800,
            batch=8,
            warmup=80,
            ema=0.99,
            evaluate_every=200,
            save_every=200,
            max_cfg_scale=3.0,
            self_generated=2048,
        ),
    )
