"""Fast, unchanged autoregressive generation in JAX.

The names below are imported when they are first used: `import jaxspec` is quick.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Adaptive": "jaxspec.drafters.adaptive",
    "Annealed": "jaxspec.spec.verify",
    "Beam": "jaxspec.spec.envelopes",
    "BestFirst": "jaxspec.spec.envelopes",
    "Block": "jaxspec.spec.verify",
    "BlockDiffusion": "jaxspec.drafters.block_diffusion",
    "BlockDiffusionConfig": "jaxspec.config",
    "Bundle": "jaxspec.bundle",
    "Checkpoint": "jaxspec.checkpoint",
    "AdapterConfig": "jaxspec.config",
    "ConfidenceCutoff": "jaxspec.drafters.adaptive",
    "Coupled": "jaxspec.spec.verify",
    "CoupledRelaxed": "jaxspec.spec.verify",
    "Draft": "jaxspec.spec.draft",
    "Drafter": "jaxspec.spec.draft",
    "DynamicExit": "jaxspec.drafters.dynamic_exit",
    "Engine": "jaxspec.spec.state",
    "EntropyCutoff": "jaxspec.drafters.adaptive",
    "ExtraRows": "jaxspec.spec.draft",
    "Falcon": "jaxspec.drafters.falcon",
    "Generation": "jaxspec.spec.state",
    "FeatureHead": "jaxspec.drafters.feature_head",
    "FeatureHeadConfig": "jaxspec.config",
    "GreedySet": "jaxspec.spec.verify",
    "Grouped": "jaxspec.spec.verify",
    "Jacobi": "jaxspec.drafters.jacobi",
    "JaxspecError": "jaxspec.errors",
    "Judge": "jaxspec.spec.verify",
    "Kangaroo": "jaxspec.drafters.kangaroo",
    "KSeq": "jaxspec.spec.verify",
    "KVCache": "jaxspec.spec.cache",
    "Lantern": "jaxspec.spec.verify",
    "Lattice": "jaxspec.drafters.lattice",
    "LengthController": "jaxspec.drafters.adaptive",
    "Limits": "jaxspec.spec.state",
    "Lookahead": "jaxspec.drafters.lookahead",
    "MaskDrafter": "jaxspec.drafters.mask_drafter",
    "MaskedDiffusion": "jaxspec.models.masked_diffusion",
    "Neighbours": "jaxspec.spec.neighbours",
    "NgramTable": "jaxspec.drafters.ngram",
    "Noise": "jaxspec.spec.noise",
    "Observation": "jaxspec.spec.draft",
    "ParallelHeads": "jaxspec.drafters.parallel_heads",
    "ParallelHeadsConfig": "jaxspec.config",
    "PromptTokens": "jaxspec.drafters.prompt_tokens",
    "PromptTokensConfig": "jaxspec.config",
    "PromptLookup": "jaxspec.drafters.prompt_lookup",
    "Rejection": "jaxspec.spec.verify",
    "RopeScaling": "jaxspec.config",
    "Round": "jaxspec.spec.draft",
    "Rule": "jaxspec.spec.verify",
    "Sampling": "jaxspec.spec.sampling",
    "SemiAutoregressiveConfig": "jaxspec.config",
    "SmallModel": "jaxspec.drafters.small_model",
    "SpecState": "jaxspec.spec.state",
    "Start": "jaxspec.spec.draft",
    "StochasticBeam": "jaxspec.spec.envelopes",
    "StopHead": "jaxspec.drafters.stop_head",
    "Target": "jaxspec.spec.target",
    "TokenRecycling": "jaxspec.drafters.recycling",
    "TokenPrompt": "jaxspec.models.transformer",
    "Tokenizer": "jaxspec.models.tokenizer",
    "TokenizerConfig": "jaxspec.config",
    "Transformer": "jaxspec.models.transformer",
    "TransformerConfig": "jaxspec.config",
    "Tree": "jaxspec.spec.tree",
    "TextEncoder": "jaxspec.models.t5",
    "TextEncoderConfig": "jaxspec.config",
    "Typical": "jaxspec.spec.verify",
    "Union": "jaxspec.drafters.union",
    "Verdict": "jaxspec.spec.verify",
    "draw_noise": "jaxspec.spec.noise",
    "early_exit": "jaxspec.drafters.small_model",
    "generate": "jaxspec.spec.loop",
    "grow": "jaxspec.drafters.grow",
    "init_state": "jaxspec.spec.loop",
    "load": "jaxspec.loading",
    "load_bundle": "jaxspec.bundle",
    "load_checkpoint": "jaxspec.checkpoint",
    "make_limits": "jaxspec.spec.state",
    "make_sampling": "jaxspec.spec.sampling",
    "make_target": "jaxspec.models.target",
    "named_tree": "jaxspec.spec.named_trees",
    "neighbour_table": "jaxspec.spec.neighbours",
    "optimal_acceptance": "jaxspec.spec.acceptance",
    "preset": "jaxspec.models.presets",
    "prompt_tokens": "jaxspec.drafters.riding_blocks",
    "row_keys": "jaxspec.spec.noise",
    "save": "jaxspec.checkpoint",
    "spec_step": "jaxspec.spec.loop",
    "tidar": "jaxspec.drafters.riding_blocks",
    "with_extra_tokens": "jaxspec.drafters.riding_blocks",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxspec' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_HOMES])
