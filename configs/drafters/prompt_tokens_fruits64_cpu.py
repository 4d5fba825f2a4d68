"""Parallel prompt decoding (PPD) with four prompt tokens, for the embedded prior."""

from dataclasses import replace
from pathlib import Path

from jaxspec.drafters.ppd.drafter import PPDConfig
from jaxspec.train.experiment import Experiment, load_experiment


def get_config() -> Experiment:
    """The embedded preset with another drafter."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    return replace(experiment, drafter=PPDConfig(4))
