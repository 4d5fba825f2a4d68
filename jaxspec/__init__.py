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
    "DFlash": "jaxspec.drafters.block_diffusion",
    "DFlashConfig": "jaxspec.config",
    "Bundle": "jaxspec.bundle",
    "Checkpoint": "jaxspec.checkpoint",
    "KangarooConfig": "jaxspec.config",
    "ConfidenceCutoff": "jaxspec.drafters.adaptive",
    "Coupled": "jaxspec.spec.verify",
    "CoupledRelaxed": "jaxspec.spec.verify",
    "Draft": "jaxspec.spec.draft",
    "Drafter": "jaxspec.spec.draft",
    "DynamicExit": "jaxspec.drafters.dynamic_exit",
    "Engine": "jaxspec.spec.engine",
    "EntropyCutoff": "jaxspec.drafters.adaptive",
    "ExtraQueries": "jaxspec.spec.draft",
    "Falcon": "jaxspec.drafters.falcon",
    "Generation": "jaxspec.spec.state",
    "Eagle": "jaxspec.drafters.feature_head",
    "EagleConfig": "jaxspec.config",
    "GreedySet": "jaxspec.spec.verify",
    "Grouped": "jaxspec.spec.verify",
    "Jacobi": "jaxspec.drafters.jacobi",
    "JaxspecError": "jaxspec.errors",
    "Judge": "jaxspec.spec.verify",
    "Kangaroo": "jaxspec.drafters.kangaroo",
    "KSeq": "jaxspec.spec.verify",
    "KVCache": "jaxspec.spec.cache",
    "Lantern": "jaxspec.spec.verify",
    "DiffuSpec": "jaxspec.drafters.lattice",
    "LengthController": "jaxspec.drafters.adaptive",
    "StoppingCriteria": "jaxspec.spec.stopping",
    "Lookahead": "jaxspec.drafters.lookahead",
    "Deer": "jaxspec.drafters.mask_drafter",
    "MaskedDiffusion": "jaxspec.models.masked_diffusion",
    "MergedDrafter": "jaxspec.drafters.union",
    "Neighbors": "jaxspec.spec.neighbors",
    "NgramTable": "jaxspec.drafters.ngram",
    "Noise": "jaxspec.spec.noise",
    "RoundResult": "jaxspec.spec.draft",
    "Medusa": "jaxspec.drafters.parallel_heads",
    "MedusaConfig": "jaxspec.config",
    "Pipeline": "jaxspec.pipeline.pipeline",
    "PPD": "jaxspec.drafters.prompt_tokens",
    "PPDConfig": "jaxspec.config",
    "PromptLookup": "jaxspec.drafters.prompt_lookup",
    "Rejection": "jaxspec.spec.verify",
    "RopeScaling": "jaxspec.config",
    "DraftContext": "jaxspec.spec.draft",
    "Verifier": "jaxspec.spec.verify",
    "Sampling": "jaxspec.spec.sampling",
    "FalconConfig": "jaxspec.config",
    "DraftModel": "jaxspec.drafters.small_model",
    "SpecState": "jaxspec.spec.state",
    "InitContext": "jaxspec.spec.draft",
    "StochasticBeam": "jaxspec.spec.envelopes",
    "AcceptanceHead": "jaxspec.drafters.stop_head",
    "Target": "jaxspec.spec.target",
    "TokenRecycling": "jaxspec.drafters.recycling",
    "TokenPrompt": "jaxspec.models.prompts",
    "Tokenizer": "jaxspec.models.tokenizer",
    "TokenizerConfig": "jaxspec.config",
    "Transformer": "jaxspec.models.transformer",
    "TransformerConfig": "jaxspec.config",
    "Tree": "jaxspec.spec.tree",
    "TextEncoder": "jaxspec.models.t5",
    "TextEncoderConfig": "jaxspec.config",
    "Typical": "jaxspec.spec.verify",
    "Variables": "jaxspec.spec.state",
    "Verdict": "jaxspec.spec.verify",
    "draw_noise": "jaxspec.spec.noise",
    "early_exit": "jaxspec.drafters.small_model",
    "grow": "jaxspec.drafters.grow",
    "load": "jaxspec.loading",
    "load_pipeline": "jaxspec.pipeline.pipeline",
    "load_bundle": "jaxspec.bundle",
    "load_checkpoint": "jaxspec.checkpoint",
    "neighbor_table": "jaxspec.spec.neighbors",
    "optimal_acceptance": "jaxspec.spec.acceptance",
    "preset": "jaxspec.models.presets",
    "ppd": "jaxspec.drafters.riding_blocks",
    "batch_keys": "jaxspec.spec.noise",
    "save": "jaxspec.checkpoint",
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
