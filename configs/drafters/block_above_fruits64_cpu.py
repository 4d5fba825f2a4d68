"""DFlash drafter whose block also reads tokens of the image row above."""

from dataclasses import replace
from pathlib import Path

from jaxspec.train.experiment import Experiment, load_experiment


def get_config() -> Experiment:
    """The embedded preset with another drafter."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    return replace(experiment, drafter=replace(experiment.drafter, above=True))
