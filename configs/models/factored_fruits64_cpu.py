"""Tokens of 12 bits, and a model that predicts them as two sub-codes of 6.

Train both: `jaxspec train all --config models/factored_fruits64_cpu --out
runs/factored`; with `--set "prior.factors=()"` it has one table of 4,096 tokens.
"""

from dataclasses import replace
from pathlib import Path

from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.train.experiment import Experiment, load_experiment

BITS = 12


def get_config() -> Experiment:
    """The embedded preset with bits (BAE) in place of a learned codebook."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    assert isinstance(experiment.tokenizer, TokenizerConfig)
    assert isinstance(experiment.prior, TransformerConfig)
    tokenizer = replace(
        experiment.tokenizer,
        quantizer="bits",
        code_dim=BITS,
        codebook_size=2**BITS,
        normalized="none",
    )
    half = 2 ** (BITS // 2)
    return replace(
        experiment,
        name="fruits64-factored",
        tokenizer=tokenizer,
        prior=replace(experiment.prior, vocab_size=2**BITS, factors=(half, half)),
        drafter=None,
    )
