"""Fruits-360 at 64x64 with continuous tokens, for a machine with a few CPU cores."""

from dataclasses import replace

from jaxspec.config import KLTokenizerConfig, MARConfig
from jaxspec.tokenizers.vqgan.model import PRESETS
from jaxspec.train.experiment import Experiment
from jaxspec.train.settings import (
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
)


def get_config() -> Experiment:
    """Preset of a masked model over continuous tokens (MAR).

    A smaller one over the same tokens drafts for it: `--set prior.width=128 --set
    prior.encoder_layers=2 --set prior.decoder_layers=2 --set prior.head_width=128 --set
    prior.head_layers=2`.
    """
    networks = replace(
        PRESETS["small-64"],
        patch_size=4,
        channels=64,
        multipliers=(1, 2),
        encoder_blocks=1,
        decoder_blocks=1,
        latent_channels=16,
        codebook_size=1,
        code_dim=16,
        normalized="none",
    )
    return Experiment(
        name="fruits64-mar",
        data=DataConfig(
            name="fruits360_64",
            credit="Fruits-360, Copyright (c) 2017- Mihai Oltean",
            license="CC BY-SA 4.0",
            caveat="train and test show the same physical fruit from neighboring "
            "angles, so held-out figures are optimistic",
        ),
        tokenizer=KLTokenizerConfig(networks, scale=1.0),
        prior=MARConfig(
            channels=16,
            grid=8,
            encoder_layers=4,
            decoder_layers=4,
            width=256,
            heads=4,
            buffer=4,
            classes=67,
            head_layers=3,
            head_width=256,
            bound=5.0,
        ),
        drafter=None,
        train_tokenizer=TokenizerTrainingConfig(
            steps=700, batch=32, weight_decay=1e-4, ema=0.995
        ),
        train_prior=PriorTrainingConfig(
            steps=850,
            batch=32,
            optimizer="muon",
            warmup=100,
            ema=0.995,
            evaluate_every=425,
            save_every=425,
        ),
        train_drafter=DrafterTrainingConfig(steps=1, batch=1),
    )
