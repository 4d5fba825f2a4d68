"""Drafters that are trained for a target and kept in checkpoints."""

from typing import Any

from jaxspec.config import (
    AdapterConfig,
    BlockDiffusionConfig,
    FeatureHeadConfig,
    ParallelHeadsConfig,
    PromptTokensConfig,
    SemiAutoregressiveConfig,
    TransformerConfig,
)
from jaxspec.drafters.block_diffusion import BlockDiffusion
from jaxspec.drafters.falcon import Falcon
from jaxspec.drafters.feature_head import FeatureHead
from jaxspec.drafters.kangaroo import Kangaroo
from jaxspec.drafters.parallel_heads import ParallelHeads
from jaxspec.drafters.prompt_tokens import PromptTokens

DRAFTERS: dict[str, Any] = {
    "block_diffusion": BlockDiffusion,
    "feature_head": FeatureHead,
    "parallel_heads": ParallelHeads,
    "prompt_tokens": PromptTokens,
    "kangaroo": Kangaroo,
    "falcon": Falcon,
}
DrafterConfig = (
    BlockDiffusionConfig
    | FeatureHeadConfig
    | ParallelHeadsConfig
    | PromptTokensConfig
    | AdapterConfig
    | SemiAutoregressiveConfig
)
_KIND_OF = {
    BlockDiffusionConfig: "block_diffusion",
    FeatureHeadConfig: "feature_head",
    ParallelHeadsConfig: "parallel_heads",
    PromptTokensConfig: "prompt_tokens",
    AdapterConfig: "kangaroo",
    SemiAutoregressiveConfig: "falcon",
}


def make_drafter(config: DrafterConfig, target: TransformerConfig) -> tuple[str, Any]:
    """The kind of a configuration, and the drafter for a target.

    All of them have `init_params(key)`, `bind(own, target_params)`, `taps`, `reach`
    (most drafted tokens on a path) and `check_tree(tree)`.

    Raises:
      ConfigError: they do not fit together.
    """
    kind = _KIND_OF[type(config)]
    return kind, DRAFTERS[kind](config, target)
