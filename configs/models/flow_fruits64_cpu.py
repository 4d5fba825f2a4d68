"""Tokens in a row that condition a flow, and a model over them (FlexTok, D-AR).

Train both: `jaxspec train tokenizer --config configs/models/flow_fruits64_cpu.py ...`,
then `jaxspec train prior` with the same options. `--set tokenizer.groups=8` makes
groups of tokens that condition one part of the flow after the other (D-AR).
"""

from dataclasses import replace
from pathlib import Path

from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.one_d import ViTConfig
from jaxspec.train.experiment import Experiment, load_experiment
from jaxspec.train.settings import TokenizerTrainingConfig


def get_config() -> Experiment:
    """The embedded preset with 64 tokens in a row in place of a grid of 256."""
    experiment = load_experiment(Path(__file__).parents[1] / "fruits64_cpu.py")
    tokenizer = FlowTokenizerConfig(
        image_size=64,
        # A patch has fewer numbers than the networks are wide, or noise does not pass.
        patch_size=4,
        length=64,
        levels=(8, 6, 5, 5),
        encoder=ViTConfig(layers=4, width=192, heads=3),
        decoder=ViTConfig(layers=6, width=192, heads=3),
        steps=8,
        guidance=1.5,
    )
    return replace(
        experiment,
        name="fruits64-flow",
        tokenizer=tokenizer,
        prior=replace(
            experiment.prior,
            rope="sequence",
            max_length=tokenizer.length,
            vocab_size=tokenizer.codebook_size,
        ),
        train_tokenizer=TokenizerTrainingConfig(
            steps=4000,
            batch=32,
            warmup=100,
            weight_decay=1e-4,
            ema=0.995,
            evaluate_every=500,
            save_every=250,
        ),
    )
