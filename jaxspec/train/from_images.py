"""Experiment whose sizes follow from the images and the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax

from jaxspec.checkpoint import parameter_count
from jaxspec.config import TextEncoderConfig, TokenizerConfig, TransformerConfig
from jaxspec.config.token_kinds import tokens_of
from jaxspec.data.dataset import ImageDataset
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.errors import ConfigError
from jaxspec.sharding.device import device_name
from jaxspec.train.experiment import Experiment
from jaxspec.train.overrides import read_settings, replaced
from jaxspec.train.settings import (
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
)

# Text tokens of a caption, the longest that is not cut, and of the vocabulary.
CAPTION_LENGTH, VOCABULARY = 24, 2048
SIDES = (32, 64, 128, 256)
PARTS = ("tokenizer", "prior", "drafter")
# Shares of the time that the three parts of `train all` take.
SHARES = {"tokenizer": 0.3, "prior": 0.4, "drafter": 0.3}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the three models for one kind of device.

    Attributes:
      most_side: largest images, in pixels a side.
      channels: channels of the tokenizer.
      codebook: number of codes.
      layers: layers of the prior.
      width: width of prior and drafter.
      batch: images of a step of tokenizer and prior; half of them of a drafter's.
      text_layers: layers of the text encoder of captions.
      text_width: width of the text encoder.
    """

    most_side: int
    channels: int
    codebook: int
    layers: int
    width: int
    batch: int
    text_layers: int
    text_width: int


CPU = Sizes(64, 64, 512, layers=6, width=256, batch=32, text_layers=2, text_width=128)
ACCELERATOR = Sizes(
    256, 128, 4096, layers=12, width=768, batch=128, text_layers=4, text_width=512
)


def experiment_for(
    dataset: ImageDataset,
    platform: str | None = None,
    *,
    tokenizer: TokenizerConfig | None = None,
    prior: TransformerConfig | None = None,
    text_encoder: TextEncoderConfig | None = None,
    settings: Sequence[str] = (),
) -> Experiment:
    """Chooses tokenizer, prior and drafter for a data set.

    Images become squares of 32, 64, 128 or 256 pixels: the largest that is not above
    their typical shorter side and suits the device. A token covers 8x8 pixels (4x4 of
    images of 32, 16x16 of 256), so an image has at most 256 tokens.

    Args:
      dataset: images to train on.
      platform: "cpu", "gpu" or "tpu"; by default that of the first device.
      tokenizer: configuration of a tokenizer that exists, whose image size and grid are
        taken.
      prior: configuration of a prior that exists.
      text_encoder: configuration of the text encoder of a prior that exists.
      settings: fields to change, see `overrides.read_settings`. Sizes of later parts
        follow those of earlier ones.

    Raises:
      ConfigError: settings do not fit, or captions need a package that is missing.
    """
    if prior is not None and (prior.condition == "caption") != dataset.captioned:
        kinds = {True: "captions", False: "classes"}
        raise ConfigError(
            f"the folder holds models for {kinds[not dataset.captioned]}, and "
            f"'{dataset.name}' has {kinds[dataset.captioned]}; choose another --out"
        )
    if not isinstance(tokenizer, TokenizerConfig | None) or not isinstance(
        prior, TransformerConfig | None
    ):
        raise ConfigError(
            "the folder holds models of another kind than a folder of images gets by "
            "default; name their preset with --config"
        )
    platform = platform or jax.devices()[0].platform
    sizes = CPU if platform == "cpu" else ACCELERATOR
    fitting = [s for s in SIDES if s <= min(dataset.side, sizes.most_side)]
    side = fitting[-1] if fitting else SIDES[0]
    changes = read_settings(settings)

    def change(part: str, config: Any) -> Any:
        return replaced(config, changes.pop(part, {}), f"{part}.")

    tokenizer = tokenizer or tokenizer_for(side, sizes)
    tokenizer = cast(TokenizerConfig, change("tokenizer", tokenizer))
    if dataset.captioned and text_encoder is None:
        text_encoder = change("text_encoder", text_encoder_for(sizes))
    width = changes.get("prior", {}).get("width", sizes.width)
    width = width if isinstance(width, int) else sizes.width  # refused below
    chosen = prior or TransformerConfig(
        condition="caption" if text_encoder else "class",
        caption_length=text_encoder.length if text_encoder else CAPTION_LENGTH,
        caption_width=text_encoder.width if text_encoder else sizes.text_width,
        vocab_size=tokenizer.codebook_size,
        layers=sizes.layers,
        width=width,
        heads=max(width // 64, 1),
        grid=tokenizer.grid,
        classes=len(dataset.class_names),
    )
    chosen = change("prior", chosen)
    layers = chosen.layers
    drafter = DFlashConfig(
        block_size=8,
        layers=2,
        width=chosen.width,
        heads=chosen.heads,
        ffn_width=3 * chosen.width,
        feature_layers=tuple(sorted({min(1, layers - 1), layers // 2, layers - 1})),
        markov_rank=64,
    )
    drafter = change("drafter", drafter)
    experiment = Experiment(
        name=dataset.name,
        data=data_config(dataset),
        tokenizer=tokenizer,
        prior=chosen,
        drafter=drafter,
        text_encoder=text_encoder,
        **_trainings(dataset, sizes, platform),
    )
    return replaced(experiment, changes)


def _trainings(dataset: ImageDataset, sizes: Sizes, platform: str) -> dict[str, Any]:
    """Settings of the trainings, whose numbers of steps are upper limits of a time.

    They are 200, 60 and 50 passes over the images, or 4000, 1000 and 1000 steps if
    that is more.
    """
    epochs = max(dataset.count // sizes.batch, 1)
    dtype = "float32" if platform == "cpu" else "bfloat16"
    return {
        "train_tokenizer": TokenizerTrainingConfig(
            steps=max(200 * epochs, 4000),
            weight_decay=1e-4,
            ema=0.995,
            batch=sizes.batch,
            compute_dtype=dtype,
        ),
        "train_prior": PriorTrainingConfig(
            steps=max(60 * epochs, 1000),
            warmup=150,
            ema=0.997,
            batch=sizes.batch,
            compute_dtype=dtype,
        ),
        "train_drafter": DrafterTrainingConfig(
            steps=max(100 * epochs, 1000),
            ema=0.99,
            max_cfg_scale=3.0,
            self_generated=16384,
            batch=sizes.batch // 2,
            compute_dtype=dtype,
        ),
    }


def data_config(dataset: ImageDataset, flips: bool = True) -> DataConfig:
    """Description of a data set for an experiment and its model cards."""
    return DataConfig(dataset.name, heldout_split="held out", flips=flips)


def with_images(experiment: Experiment, dataset: ImageDataset) -> Experiment:
    """A preset whose data set is replaced.

    Raises:
      ConfigError: the preset is for text, or the images have captions and the preset
        classes, or the reverse.
    """
    captioned = experiment.prior.condition == "caption"
    if experiment.text_file is not None or dataset.captioned != captioned:
        kinds = {True: "captioned images", False: "images with classes"}
        wanted = "text" if experiment.text_file else kinds[captioned]
        raise ConfigError(
            f"the preset {experiment.name} is for {wanted}, and '{dataset.name}' has "
            f"{kinds[dataset.captioned]}; leave out --config"
        )
    data = data_config(dataset, experiment.data.flips)
    prior = experiment.prior
    if not captioned and not isinstance(prior, TransformerConfig):
        prior = replace(prior, classes=len(dataset.class_names))
    return replace(experiment, data=data, prior=prior)


def text_encoder_for(sizes: Sizes) -> TextEncoderConfig:
    """Text encoder that is trained on captions together with the prior."""
    return TextEncoderConfig(
        vocab_size=VOCABULARY,
        layers=sizes.text_layers,
        width=sizes.text_width,
        heads=sizes.text_width // 32,
        head_dim=32,
        ffn_width=2 * sizes.text_width,
        length=CAPTION_LENGTH,
    )


def tokenizer_for(side: int, sizes: Sizes) -> TokenizerConfig:
    """Tokenizer of images of `side` pixels, with a grid of 8 or 16 tokens a side."""
    patch, multipliers = {
        32: (2, (1, 2)),
        64: (4, (1, 2)),
        128: (4, (1, 2)),
        256: (2, (1, 1, 2, 2)),
    }[side]
    return TokenizerConfig(
        image_size=side,
        patch_size=patch,
        channels=sizes.channels,
        multipliers=multipliers,
        encoder_blocks=1,
        decoder_blocks=2,
        attention="middle",
        groups=8,
        latent_channels=sizes.channels,
        codebook_size=sizes.codebook,
    )


def describe(experiment: Experiment, dataset: ImageDataset) -> str:
    """Sizes of an experiment, for a person to read."""
    tokenizer, prior = experiment.tokenizer, experiment.prior
    assert tokenizer is not None  # images, not text
    names = dataset.class_names
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    count = f"{len(names)} classes" if len(names) > 1 else "one class"
    kinds = "with captions" if dataset.captioned else f"{count} ({shown})"
    held = "" if dataset.heldout is None else f", {dataset.heldout} held out"
    return "\n".join(
        (
            f"device     {device_name()}",
            f"images     {dataset.count} to train on{held}, {kinds}",
            f"size       {tokenizer.image_size}x{tokenizer.image_size} pixels, as "
            f"{tokens_of(tokenizer)}",
            f"tokenizer  {_millions(tokenizer)} parameters",
            f"prior      {_millions(prior)} parameters, width {prior.width}",
        )
    )


def _millions(config: Any) -> str:
    """Number of parameters."""
    return f"{parameter_count(config) / 1e6:.1f} million"
