"""Captioned emoji at 64x64 for a machine with a few CPU cores: hours on two."""

from dataclasses import replace

from jaxspec.config import TextEncoderConfig, TransformerConfig
from jaxspec.tokenizers.vqgan.model import PRESETS
from jaxspec.train.experiment import Experiment
from jaxspec.train.settings import (
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
)


def get_config() -> Experiment:
    """Preset of the embedded text-to-image checkpoint."""
    text_encoder = TextEncoderConfig(
        vocab_size=4096,
        layers=3,
        width=256,
        heads=8,
        head_dim=32,
        ffn_width=512,
        length=24,
    )
    return Experiment(
        name="emoji64",
        data=DataConfig(
            name="emoji64",
            flips=False,  # among the copies that the data set holds
            matcher_split="train+test",
            examples=(
                "a red apple, 3d",
                "penguin, flat",
                "cat face, noto",
                "pizza, 3d",
                "rocket, flat",
                "blue car, 3d",
                "crying face, noto",
                "green tree, flat",
                "🦊",
            ),
            credit="Noto Emoji, Copyright Google LLC; Fluent Emoji, Copyright (c) "
            "Microsoft Corporation; names from emojibase, Copyright (c) Miles Johnson",
            license="Apache-2.0 (Noto Emoji), MIT (Fluent Emoji, emojibase)",
        ),
        tokenizer=replace(
            PRESETS["small-64"],
            channels=80,
            latent_channels=80,
            encoder_blocks=1,
            decoder_blocks=6,
            # The best 7 numbers of a patch, as many as a code of width 8 has, leave
            # 25.6 dB; those of width 16 leave 30.8.
            codebook_size=4096,
            code_dim=16,
            # Jacobi decoding drafts many tokens of this order, without a drafter.
            order="halton",
        ),
        text_encoder=text_encoder,
        prior=TransformerConfig(
            vocab_size=4096,
            layers=6,
            width=256,
            heads=4,
            grid=16,
            order="halton",
            next_cell=True,
            condition="caption",
            caption_length=text_encoder.length,
            caption_width=text_encoder.width,
            # Changed copies are regularization enough for few passes.
            token_dropout=0.0,
            residual_dropout=0.0,
            ffn_dropout=0.0,
        ),
        drafter=None,
        train_tokenizer=TokenizerTrainingConfig(
            steps=5000, batch=16, weight_decay=1e-4, ema=0.998, rounded=True
        ),
        train_prior=PriorTrainingConfig(
            steps=5000,
            batch=16,
            optimizer="muon",
            learning_rate=2e-3,
            warmup=150,
            ema=0.998,
            evaluate_every=250,
            save_every=250,
            rounded=True,
        ),
        train_drafter=DrafterTrainingConfig(steps=1, batch=1),
    )
