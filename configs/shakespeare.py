"""Shakespeare's plays as bytes: a small text model, about 15 minutes on two cores."""

from jaxspec.config import TransformerConfig
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.train.experiment import Experiment
from jaxspec.train.settings import (
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
)


def get_config() -> Experiment:
    """Preset with one token per byte and windows of 256."""
    return Experiment(
        name="shakespeare",
        data=DataConfig(
            name="text:input.txt",
            credit="tinyshakespeare, from A. Karpathy's char-rnn",
            license="public domain (the plays), MIT (the collection)",
        ),
        tokenizer=None,
        prior=TransformerConfig(
            vocab_size=256,
            layers=4,
            width=192,
            heads=4,
            rope="sequence",
            max_length=256,
            condition="none",
            token_dropout=0.0,
            residual_dropout=0.0,
            ffn_dropout=0.0,
            condition_dropout=0.0,
        ),
        drafter=DFlashConfig(
            block_size=8,
            layers=2,
            width=192,
            heads=4,
            ffn_width=512,
            feature_layers=(0, 1, 3),
            markov_rank=64,
        ),
        train_tokenizer=None,
        train_prior=PriorTrainingConfig(
            steps=1000,
            batch=16,
            warmup=100,
            learning_rate=2e-3,
            ema=0.99,
            evaluate_every=250,
            save_every=250,
        ),
        train_drafter=DrafterTrainingConfig(
            steps=600,
            batch=16,
            warmup=60,
            ema=0.99,
            null_share=0.0,
            evaluate_every=200,
            save_every=200,
        ),
    )
