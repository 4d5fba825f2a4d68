"""Hydra++ heads for the embedded prior: minutes on two CPU cores."""

from dataclasses import replace
from pathlib import Path

from jaxspec.drafters.medusa.network import MedusaConfig
from jaxspec.train.experiment import Experiment, load_experiment


def get_config() -> Experiment:
    """The embedded preset with another drafter."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    drafter = MedusaConfig(
        heads=5, width=256, sequential=True, prefix_heads=4, prefix_ffn_width=768
    )
    return replace(experiment, drafter=drafter)
