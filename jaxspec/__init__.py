"""Fast, unchanged autoregressive generation in JAX.

The names below are imported when they are first used: `import jaxspec` is quick.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Adaptive": "jaxspec.drafters.combine.adaptive",
    "Annealed": "jaxspec.speculative.verify",
    "Beam": "jaxspec.speculative.trees.dynamic",
    "BestFirst": "jaxspec.speculative.trees.dynamic",
    "Block": "jaxspec.speculative.verify",
    "DFlash": "jaxspec.drafters.dflash.drafter",
    "DFlashConfig": "jaxspec.config",
    "Bundle": "jaxspec.pipeline.bundle",
    "Checkpoint": "jaxspec.checkpoint",
    "KangarooConfig": "jaxspec.config",
    "ConfidenceCutoff": "jaxspec.drafters.combine.adaptive",
    "Coupled": "jaxspec.speculative.verify",
    "CoupledRelaxed": "jaxspec.speculative.verify",
    "Draft": "jaxspec.speculative.draft",
    "Drafter": "jaxspec.speculative.draft",
    "DynamicExit": "jaxspec.drafters.draft_model.dynamic_exit",
    "Engine": "jaxspec.speculative.engine",
    "EntropyCutoff": "jaxspec.drafters.combine.adaptive",
    "ExtraQueries": "jaxspec.speculative.draft",
    "Falcon": "jaxspec.drafters.falcon.drafter",
    "Generation": "jaxspec.core.result",
    "Eagle": "jaxspec.drafters.eagle.drafter",
    "EagleConfig": "jaxspec.config",
    "GreedySet": "jaxspec.speculative.verify",
    "Grouped": "jaxspec.speculative.verify",
    "Jacobi": "jaxspec.drafters.training_free.jacobi",
    "JaxspecError": "jaxspec.errors",
    "Judge": "jaxspec.speculative.verify",
    "Kangaroo": "jaxspec.drafters.kangaroo.drafter",
    "KSeq": "jaxspec.speculative.verify",
    "KVCache": "jaxspec.core.kv_cache",
    "Lantern": "jaxspec.speculative.verify",
    "DiffuSpec": "jaxspec.drafters.masked.diffuspec",
    "LengthController": "jaxspec.drafters.combine.adaptive",
    "StoppingCriteria": "jaxspec.core.stopping",
    "Lookahead": "jaxspec.drafters.training_free.lookahead",
    "Deer": "jaxspec.drafters.masked.deer",
    "MaskedDiffusion": "jaxspec.models.masked_lm.model",
    "MergedDrafter": "jaxspec.drafters.combine.merged",
    "Neighbors": "jaxspec.speculative.verify.neighbors",
    "NgramTable": "jaxspec.drafters.training_free.ngram",
    "Noise": "jaxspec.core.noise",
    "RoundResult": "jaxspec.speculative.draft",
    "Medusa": "jaxspec.drafters.medusa.drafter",
    "MedusaConfig": "jaxspec.config",
    "Pipeline": "jaxspec.pipeline.pipeline",
    "PPD": "jaxspec.drafters.ppd.drafter",
    "PPDConfig": "jaxspec.config",
    "PromptLookup": "jaxspec.drafters.training_free.prompt_lookup",
    "Rejection": "jaxspec.speculative.verify",
    "RopeScaling": "jaxspec.config",
    "DraftContext": "jaxspec.speculative.draft",
    "Verifier": "jaxspec.speculative.verify",
    "Sampling": "jaxspec.core.sampling",
    "FalconConfig": "jaxspec.config",
    "DraftModel": "jaxspec.drafters.draft_model.drafter",
    "SpecState": "jaxspec.speculative.state",
    "InitContext": "jaxspec.speculative.draft",
    "StochasticBeam": "jaxspec.speculative.trees.dynamic",
    "AcceptanceHead": "jaxspec.drafters.dflash.acceptance_head",
    "Target": "jaxspec.speculative.target",
    "TokenRecycling": "jaxspec.drafters.training_free.recycling",
    "TokenPrompt": "jaxspec.models.transformer.prompts",
    "Tokenizer": "jaxspec.tokenizers.vqgan.model",
    "TokenizerConfig": "jaxspec.config",
    "Transformer": "jaxspec.models.transformer.model",
    "TransformerConfig": "jaxspec.config",
    "Tree": "jaxspec.speculative.trees.tree",
    "TextEncoder": "jaxspec.models.t5.model",
    "TextEncoderConfig": "jaxspec.config",
    "Typical": "jaxspec.speculative.verify",
    "Variables": "jaxspec.speculative.state",
    "Verdict": "jaxspec.speculative.verify",
    "draw_noise": "jaxspec.core.noise",
    "early_exit": "jaxspec.drafters.draft_model.drafter",
    "grow": "jaxspec.drafters.tree_drafting",
    "load": "jaxspec.pipeline.load",
    "load_pipeline": "jaxspec.pipeline.pipeline",
    "load_bundle": "jaxspec.pipeline.bundle",
    "load_checkpoint": "jaxspec.checkpoint",
    "neighbor_table": "jaxspec.speculative.verify.neighbors",
    "optimal_acceptance": "jaxspec.speculative.verify.acceptance",
    "preset": "jaxspec.models.transformer.presets",
    "ppd": "jaxspec.drafters.inline_blocks.drafter",
    "batch_keys": "jaxspec.core.noise",
    "save": "jaxspec.checkpoint",
    "tidar": "jaxspec.drafters.inline_blocks.drafter",
    "with_extra_tokens": "jaxspec.drafters.inline_blocks.drafter",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxspec' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_HOMES])
