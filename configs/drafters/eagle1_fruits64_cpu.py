"""EAGLE-1 head for the embedded prior: about 30 minutes on two CPU cores."""

from dataclasses import replace
from pathlib import Path

from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.train.experiment import Experiment, load_experiment


def get_config() -> Experiment:
    """The embedded preset with another drafter."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    drafter = EagleConfig(1, width=256, heads=4, ffn_width=768, feature_layers=(5,))
    return replace(experiment, drafter=drafter)
