"""Tiny preset whose three parts train in seconds."""

from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.train.experiment import Experiment
from jaxspec.train.settings import (
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
)


def get_config():
    short = {"warmup": 2, "log_every": 1, "evaluate_every": 4, "save_every": 4}
    return Experiment(
        name="tiny",
        data=DataConfig("cifar10_packed", credit="made on the spot", license="CC0"),
        tokenizer=TokenizerConfig(
            image_size=32,
            patch_size=8,
            channels=8,
            multipliers=(1,),
            encoder_blocks=1,
            decoder_blocks=1,
            attention="middle",
            groups=4,
            latent_channels=8,
            codebook_size=16,
            code_dim=4,
        ),
        prior=TransformerConfig(
            vocab_size=16, layers=2, width=16, heads=2, grid=4, classes=3
        ),
        drafter=DFlashConfig(
            block_size=3,
            layers=1,
            width=16,
            heads=2,
            ffn_width=32,
            feature_layers=(0, 1),
            markov_rank=4,
        ),
        train_tokenizer=TokenizerTrainingConfig(steps=12, batch=8, **short),
        train_prior=PriorTrainingConfig(steps=12, batch=8, **short),
        train_drafter=DrafterTrainingConfig(steps=12, batch=8, **short),
    )
