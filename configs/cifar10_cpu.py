"""CIFAR-10 for a machine with a few CPU cores. Research use only."""

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
    """Preset with 32x32 images as 256 tokens, small models and short training."""
    return Experiment(
        name="cifar10",
        data=DataConfig(
            name="cifar10_packed",  # or "cifar10", which tfds downloads
            credit="CIFAR-10, A. Krizhevsky, 2009",
            license="research use only; no formal license stated by the authors",
        ),
        tokenizer=replace(
            PRESETS["small-32"],
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
            classes=10,
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
            steps=600, batch=64, weight_decay=1e-4, ema=0.99, evaluate_every=300
        ),
        train_prior=PriorTrainingConfig(
            steps=900,
            batch=16,
            warmup=100,
            ema=0.995,
            evaluate_every=300,
            save_every=300,
        ),
        train_drafter=DrafterTrainingConfig(
            steps=600,
            batch=8,
            warmup=50,
            ema=0.99,
            evaluate_every=200,
            save_every=200,
            max_cfg_scale=3.0,
            self_generated=2048,
        ),
    )
