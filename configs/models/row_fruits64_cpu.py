"""One-dimensional tokenizer of fruit whose prefixes are images, and a model over it.

Train all three parts:
`jaxspec train all --config configs/models/row_fruits64_cpu.py ...`
"""

from dataclasses import replace
from pathlib import Path

from jaxspec.config.one_d import OneDTokenizerConfig, ViTConfig
from jaxspec.train.experiment import Experiment, load_experiment
from jaxspec.train.settings import TokenizerTrainingConfig


def get_config() -> Experiment:
    """The embedded preset with 64 tokens in a row in place of a grid of 256."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    return replace(
        experiment,
        name="fruits64-row",
        tokenizer=OneDTokenizerConfig(
            image_size=64,
            patch_size=8,
            length=64,
            codebook_size=1024,
            code_dim=16,
            encoder=ViTConfig(layers=4, width=192, heads=3),
            decoder=ViTConfig(layers=6, width=192, heads=3),
            pixels=None,
            mixed_order=False,
            prefixes=True,
        ),
        prior=replace(experiment.prior, rope="sequence", max_length=64),
        train_tokenizer=TokenizerTrainingConfig(
            steps=3000,
            batch=32,
            warmup=100,
            weight_decay=1e-4,
            ema=0.995,
            evaluate_every=250,
            save_every=250,
        ),
    )
