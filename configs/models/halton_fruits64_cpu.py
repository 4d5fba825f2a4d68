"""A prior of Fruits-360 in Halton order, of which Jacobi drafts many tokens a call.

It is over the tokens of the embedded model, and starts from its prior:
`jaxspec train prior --config models/halton_fruits64_cpu --checkpoint fruits64 --start
fruits64 --out runs/halton`; about an hour on two cores. The embedded model started from
one of random orders, see its card.
"""

from dataclasses import replace
from pathlib import Path

from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.train.experiment import Experiment, load_experiment


def get_config() -> Experiment:
    """Preset of the embedded model `fruits64_halton`."""
    base = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    assert isinstance(base.prior, TransformerConfig)
    assert isinstance(base.tokenizer, TokenizerConfig)
    training = replace(
        base.train_prior,
        steps=1700,
        optimizer="muon",
        learning_rate=2e-3,
        warmup=30,
        ema=0.995,
        evaluate_every=200,
        save_every=200,
        rounded=True,
    )
    return replace(
        base,
        name="fruits64_halton",
        tokenizer=replace(base.tokenizer, order="halton"),
        # The cell of the next token is no neighbor of the last one's.
        prior=replace(base.prior, order="halton", next_cell=True),
        drafter=None,
        train_prior=training,
    )
