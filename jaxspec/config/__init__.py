"""Frozen model configurations and their JSON form."""

from jaxspec.config.drafters import (
    DFlashConfig,
    EagleConfig,
    FalconConfig,
    KangarooConfig,
    MedusaConfig,
    PPDConfig,
)
from jaxspec.config.models import (
    RopeScaling,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from jaxspec.config.plain import from_dict, to_dict

__all__ = [
    "KangarooConfig",
    "DFlashConfig",
    "EagleConfig",
    "MedusaConfig",
    "PPDConfig",
    "RopeScaling",
    "FalconConfig",
    "TextEncoderConfig",
    "TokenizerConfig",
    "TransformerConfig",
    "from_dict",
    "to_dict",
]
