"""Tiny text preset whose prior and drafter train in seconds."""

from jaxspec.config import TransformerConfig
from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.train.experiment import Experiment
from jaxspec.train.settings import (
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
)


def get_config():
    short = {"warmup": 2, "log_every": 1, "evaluate_every": 4, "save_every": 4}
    return Experiment(
        name="tiny-text",
        data=DataConfig("text:words.txt", credit="made on the spot", license="CC0"),
        tokenizer=None,
        prior=TransformerConfig(
            vocab_size=256,
            layers=2,
            width=16,
            heads=2,
            rope="sequence",
            max_length=32,
            condition="none",
        ),
        drafter=EagleConfig(
            3, width=16, heads=2, ffn_width=32, feature_layers=(0, 1), draft_vocab=32
        ),
        train_tokenizer=None,
        train_prior=PriorTrainingConfig(steps=8, batch=8, **short),
        train_drafter=DrafterTrainingConfig(steps=4, batch=8, null_share=0.0, **short),
    )
