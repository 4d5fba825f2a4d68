"""TiDAR: the embedded prior, also trained to fill blocks of masks.

Train it as a prior:
`jaxspec train prior --config configs/models/tidar_fruits64_cpu.py
--checkpoint fruits64 --start fruits64 ...`
Use it as a drafter with `--drafter DIR`, its checkpoint's folder.
"""

from dataclasses import replace
from pathlib import Path

from jaxspec.train.experiment import Experiment, load_experiment
from jaxspec.train.settings import PriorTrainingConfig


def get_config() -> Experiment:
    """The embedded preset with another prior."""
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
