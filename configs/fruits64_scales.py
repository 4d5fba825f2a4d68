"""Fruits-360 at 64x64, scale by scale, for one large GPU."""

from dataclasses import replace
from pathlib import Path

from jaxspec.config import NextScaleConfig
from jaxspec.train.experiment import Experiment, load_experiment
from jaxspec.train.settings import PriorTrainingConfig, TokenizerTrainingConfig


def get_config() -> Experiment:
    """Preset with data and tokenizer of `fruits64_scales_cpu`, trained for longer."""
    small = load_experiment(Path(__file__).parent / "fruits64_scales_cpu.py")
    assert isinstance(small.prior, NextScaleConfig)
    return replace(
        small,
        prior=replace(small.prior, layers=8, width=512, heads=8, ffn_width=2048),
        train_tokenizer=TokenizerTrainingConfig(
            steps=10000,
            batch=256,
            weight_decay=1e-4,
            ema=0.999,
            compute_dtype="bfloat16",
        ),
        train_prior=PriorTrainingConfig(
            steps=8000,
            batch=256,
            warmup=200,
            ema=0.999,
            compute_dtype="bfloat16",
        ),
    )
