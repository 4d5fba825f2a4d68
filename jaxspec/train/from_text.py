"""Experiment that trains a drafter for a model of text from prompts alone."""

from collections.abc import Sequence
from pathlib import Path

from jaxspec.config import TransformerConfig
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.errors import ConfigError
from jaxspec.train.experiment import Experiment
from jaxspec.train.overrides import read_settings, replaced
from jaxspec.train.settings import (
    PROMPTS,
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
)


def experiment_for_answers(
    prior: TransformerConfig,
    file: Path,
    name: str,
    *,
    platform: str,
    settings: Sequence[str] = (),
) -> Experiment:
    """Chooses a block drafter for a model of text, and its training.

    Args:
      prior: configuration of the model.
      file: text file with one prompt a line.
      name: name of the model.
      platform: "cpu", "gpu" or "tpu".
      settings: fields to change, see `overrides.read_settings`.

    Raises:
      ConfigError: the model makes no text, or settings do not fit.
    """
    if prior.condition != "none":
        raise ConfigError(
            f"'{name}' makes images; its drafter is trained with --images or --config"
        )
    layers = prior.layers
    drafter = DFlashConfig(
        block_size=8,
        layers=2,
        width=prior.width,
        heads=prior.heads,
        kv_heads=prior.num_kv_heads,
        head_dim=prior.head_size,
        ffn_width=3 * prior.width,
        feature_layers=tuple(sorted({min(1, layers - 1), layers // 2, layers - 1})),
        markov_rank=64,
    )
    cpu = platform == "cpu"
    changes = read_settings(settings)
    drafter = replaced(drafter, changes.pop("drafter", {}), "drafter.")
    experiment = Experiment(
        name=name,
        data=DataConfig(f"{PROMPTS}:{file}", credit=f"answers of {name}"),
        tokenizer=None,
        prior=prior,
        drafter=drafter,
        train_tokenizer=None,
        train_prior=PriorTrainingConfig(steps=1, batch=1),
        train_drafter=DrafterTrainingConfig(
            steps=2000,
            batch=4 if cpu else 32,
            warmup=60,
            ema=0.99,
            null_share=0.0,
            evaluate_every=200,
            save_every=200,
            self_generated=1024 if cpu else 16384,
            compute_dtype="float32" if cpu else "bfloat16",
        ),
    )
    return replaced(experiment, changes)
