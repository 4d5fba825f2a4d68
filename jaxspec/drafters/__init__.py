"""Drafters by the names of their papers; see `jaxspec.Drafter` for one of your own."""

from jaxspec.core.lazy import lazy_names

# Drafters that are trained: the folder of each, which is its kind in checkpoints, and
# its public names.
TRAINED = {
    "dflash": ("DFlash", "DFlashConfig"),
    "eagle": ("Eagle", "EagleConfig"),
    "falcon": ("Falcon", "FalconConfig"),
    "kangaroo": ("Kangaroo", "KangarooConfig"),
    "medusa": ("Medusa", "MedusaConfig"),
    "ppd": ("PPD", "PPDConfig"),
}
_NAMES = {
    name: f"jaxspec.drafters.{folder}"
    for folder, names in TRAINED.items()
    for name in names
} | {
    "AcceptanceHead": "jaxspec.drafters.dflash.acceptance_head",
    "Adaptive": "jaxspec.drafters.combine.adaptive",
    "ConfidenceCutoff": "jaxspec.drafters.combine.adaptive",
    "Deer": "jaxspec.drafters.masked.deer",
    "DiffuSpec": "jaxspec.drafters.masked.diffuspec",
    "DraftModel": "jaxspec.drafters.draft_model.drafter",
    "DynamicExit": "jaxspec.drafters.dynamic_exit.drafter",
    "EntropyCutoff": "jaxspec.drafters.combine.adaptive",
    "ExtraQueries": "jaxspec.speculative.draft",
    "FeatureTarget": "jaxspec.drafters.common.feature_target",
    "GridJacobi": "jaxspec.drafters.training_free.grid_jacobi",
    "Jacobi": "jaxspec.drafters.training_free.jacobi",
    "JacobiMix": "jaxspec.drafters.combine.jacobi_mix",
    "LengthController": "jaxspec.drafters.combine.adaptive",
    "Lookahead": "jaxspec.drafters.training_free.lookahead",
    "MergedDrafter": "jaxspec.drafters.combine.merged",
    "NgramTable": "jaxspec.drafters.training_free.ngram",
    "PromptLookup": "jaxspec.drafters.training_free.prompt_lookup",
    "TokenRecycling": "jaxspec.drafters.training_free.recycling",
    "early_exit": "jaxspec.drafters.draft_model.drafter",
    "frequent_tokens": "jaxspec.drafters.eagle.draft_vocabulary",
    "grow": "jaxspec.drafters.tree_drafting",
    "grow_by_depth": "jaxspec.drafters.tree_drafting",
    "ppd_blocks": "jaxspec.drafters.inline_blocks.drafter",
    "tidar": "jaxspec.drafters.inline_blocks.drafter",
    "with_extra_tokens": "jaxspec.drafters.inline_blocks.drafter",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
