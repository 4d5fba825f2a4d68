"""CIFAR-10 for one large GPU, the model of the benchmarks. Research use only."""

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

DATA = DataConfig(
    name="cifar10_packed",  # or "cifar10", which tfds downloads
    credit="CIFAR-10, A. Krizhevsky, 2009",
    license="research use only; no formal license stated by the authors",
)


def get_config() -> Experiment:
    """Preset with 32x32 images as 256 tokens."""
    return Experiment(
        name="cifar10",
        data=DATA,
        tokenizer=PRESETS["small-32"],
        prior=TransformerConfig(
            vocab_size=1024, layers=7, width=320, heads=5, grid=16, classes=10
        ),
        drafter=DFlashConfig(
            block_size=8,
            layers=3,
            width=320,
            heads=5,
            ffn_width=1024,
            feature_layers=(0, 3, 6),
            markov_rank=128,
        ),
        train_tokenizer=TokenizerTrainingConfig(
            steps=4000,
            batch=256,
            weight_decay=1e-4,
            compute_dtype="bfloat16",
        ),
        train_prior=PriorTrainingConfig(
            steps=6000, batch=128, warmup=200, compute_dtype="bfloat16"
        ),
        train_drafter=DrafterTrainingConfig(
            steps=4000, batch=64, warmup=100, compute_dtype="bfloat16"
        ),
    )
