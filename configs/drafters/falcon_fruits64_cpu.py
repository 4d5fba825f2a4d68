"""Falcon drafter with blocks of two tokens for the embedded prior."""

from dataclasses import replace
from pathlib import Path

from jaxspec.drafters.falcon.drafter import FalconConfig
from jaxspec.train.experiment import Experiment, load_experiment


def get_config() -> Experiment:
    """The embedded preset with another drafter."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    return replace(experiment, drafter=FalconConfig(2, 256, 4, 768))
