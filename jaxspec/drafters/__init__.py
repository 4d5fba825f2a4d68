"""Drafters by the names of their papers; see `jaxspec.Drafter` for one of your own."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "AcceptanceHead": "jaxspec.drafters.dflash.acceptance_head",
    "Adaptive": "jaxspec.drafters.combine.adaptive",
    "ConfidenceCutoff": "jaxspec.drafters.combine.adaptive",
    "DFlash": "jaxspec.drafters.dflash.drafter",
    "DFlashConfig": "jaxspec.config",
    "Deer": "jaxspec.drafters.masked.deer",
    "DiffuSpec": "jaxspec.drafters.masked.diffuspec",
    "DraftModel": "jaxspec.drafters.draft_model.drafter",
    "DynamicExit": "jaxspec.drafters.draft_model.dynamic_exit",
    "Eagle": "jaxspec.drafters.eagle.drafter",
    "EagleConfig": "jaxspec.config",
    "EntropyCutoff": "jaxspec.drafters.combine.adaptive",
    "ExtraQueries": "jaxspec.speculative.draft",
    "Falcon": "jaxspec.drafters.falcon.drafter",
    "FalconConfig": "jaxspec.config",
    "Jacobi": "jaxspec.drafters.training_free.jacobi",
    "Kangaroo": "jaxspec.drafters.kangaroo.drafter",
    "KangarooConfig": "jaxspec.config",
    "LengthController": "jaxspec.drafters.combine.adaptive",
    "Lookahead": "jaxspec.drafters.training_free.lookahead",
    "Medusa": "jaxspec.drafters.medusa.drafter",
    "MedusaConfig": "jaxspec.config",
    "MergedDrafter": "jaxspec.drafters.combine.merged",
    "NgramTable": "jaxspec.drafters.training_free.ngram",
    "PPD": "jaxspec.drafters.ppd.drafter",
    "PPDConfig": "jaxspec.config",
    "PromptLookup": "jaxspec.drafters.training_free.prompt_lookup",
    "TokenRecycling": "jaxspec.drafters.training_free.recycling",
    "early_exit": "jaxspec.drafters.draft_model.drafter",
    "frequent_tokens": "jaxspec.drafters.eagle.draft_vocabulary",
    "grow": "jaxspec.drafters.tree_drafting",
    "ppd": "jaxspec.drafters.inline_blocks.drafter",
    "tidar": "jaxspec.drafters.inline_blocks.drafter",
    "with_extra_tokens": "jaxspec.drafters.inline_blocks.drafter",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
