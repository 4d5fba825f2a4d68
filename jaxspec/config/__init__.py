"""Frozen model configurations and their JSON form."""

from jaxspec.config.kl import KLTokenizerConfig
from jaxspec.config.mar import MARConfig
from jaxspec.config.models import (
    RopeScaling,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from jaxspec.config.next_scale import MultiScaleTokenizerConfig, NextScaleConfig
from jaxspec.config.plain import from_dict, to_dict

__all__ = [
    "KLTokenizerConfig",
    "MARConfig",
    "MultiScaleTokenizerConfig",
    "NextScaleConfig",
    "RopeScaling",
    "TextEncoderConfig",
    "TokenizerConfig",
    "TransformerConfig",
    "from_dict",
    "to_dict",
]
