"""The embedded prior, taught to fill blocks of masks (TiDAR).

Trained as a prior:
`jaxspec train prior --config configs/models/tidar_fruits64_cpu.py
--checkpoint embedded --start checkpoints/fruits64/prior ...`
What comes out drafts by its folder's name.
"""

from dataclasses import replace
from pathlib import Path

from jaxspec.train.experiment import Experiment, PriorTrainingConfig, load_experiment


def get_config() -> Experiment:
    """The embedded preset with another model over its codes."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    return replace(
        experiment,
        drafter=None,
        prior=replace(experiment.prior, extra_tokens=1),
        train_prior=PriorTrainingConfig(
            steps=600,
            batch=16,
            warmup=60,
            ema=0.99,
            evaluate_every=200,
            save_every=200,
            learning_rate=3e-4,
            objective="tidar",
            block=6,
        ),
    )
