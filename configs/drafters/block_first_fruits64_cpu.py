"""First stage of the embedded drafter: trained on data, without CFG."""

from dataclasses import replace
from pathlib import Path

from jaxspec.train.experiment import Experiment, load_experiment
from jaxspec.train.settings import DrafterTrainingConfig


def get_config() -> Experiment:
    """The embedded preset with other training settings of its drafter."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    return replace(
        experiment,
        train_drafter=DrafterTrainingConfig(
            steps=800, batch=16, warmup=80, ema=0.99, evaluate_every=200, save_every=200
        ),
    )
