"""Residual tokenizer of fruit, four tokens a cell, and a model over them.

Train both: `jaxspec train tokenizer --config configs/models/residual_fruits64_cpu.py
...`, then `jaxspec train prior` with the same options.
"""

from dataclasses import replace
from pathlib import Path

from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.tokenizers.multi_scale.model import PRESETS
from jaxspec.train.experiment import Experiment, load_experiment


def get_config() -> Experiment:
    """The embedded preset with 8 x 8 cells of four tokens in place of a grid of 16."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    networks = replace(PRESETS["scales-64"].networks, codebook_size=256)
    tokenizer = ResidualTokenizerConfig(networks, depth=4)
    prior = replace(
        experiment.prior,
        rope="sequence",
        max_length=tokenizer.length,
        vocab_size=tokenizer.codebook_size,
    )
    return replace(
        experiment,
        name="fruits64-residual",
        tokenizer=tokenizer,
        prior=prior,
        train_tokenizer=replace(experiment.train_tokenizer, batch=32),
    )
