"""Masked model (MaskGIT) over the tokens of the embedded tokenizer.

Train it as a prior:
`jaxspec train prior --config configs/models/maskgit_fruits64_cpu.py
--checkpoint fruits64 ...`
"""

from dataclasses import replace
from pathlib import Path

from jaxspec.train.experiment import Experiment, load_experiment
from jaxspec.train.settings import PriorTrainingConfig


def get_config() -> Experiment:
    """The embedded preset with another prior, of the size of its own."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    return replace(
        experiment,
        drafter=None,
        prior=replace(experiment.prior, extra_tokens=1),
        train_prior=PriorTrainingConfig(
            steps=2000,
            batch=16,
            warmup=60,
            ema=0.99,
            evaluate_every=200,
            save_every=200,
            objective="maskgit",
        ),
    )
