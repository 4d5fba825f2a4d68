"""Frozen model configurations and their JSON form."""

from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.kl import KLTokenizerConfig
from jaxspec.config.mar import MARConfig
from jaxspec.config.models import (
    RopeScaling,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from jaxspec.config.next_scale import MultiScaleTokenizerConfig, NextScaleConfig
from jaxspec.config.one_d import (
    MaskGITTokenizerConfig,
    OneDTokenizerConfig,
    ViTConfig,
)
from jaxspec.config.plain import from_dict, to_dict
from jaxspec.config.residual import ResidualTokenizerConfig

__all__ = [
    "FlowTokenizerConfig",
    "KLTokenizerConfig",
    "MARConfig",
    "MaskGITTokenizerConfig",
    "MultiScaleTokenizerConfig",
    "NextScaleConfig",
    "OneDTokenizerConfig",
    "ResidualTokenizerConfig",
    "RopeScaling",
    "TextEncoderConfig",
    "TokenizerConfig",
    "TransformerConfig",
    "ViTConfig",
    "from_dict",
    "to_dict",
]
