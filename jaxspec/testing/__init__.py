"""Checks of targets, drafters and verifiers of one's own; toy models for tests."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "Conditionals": "jaxspec.testing.drafts",
    "Drafts": "jaxspec.testing.drafts",
    "LongestPrefix": "jaxspec.testing.longest_prefix",
    "NoisyOracle": "jaxspec.testing.toy",
    "TableDrafter": "jaxspec.testing.table_drafter",
    "all_drafts": "jaxspec.testing.drafts",
    "assert_fresh_cache": "jaxspec.testing.properties",
    "assert_lossless": "jaxspec.testing.enumeration",
    "assert_same_tokens": "jaxspec.testing.properties",
    "check_drafter": "jaxspec.testing.drafter_contract",
    "check_target": "jaxspec.testing.target_contract",
    "check_verifier": "jaxspec.testing.verifier_contract",
    "distortion": "jaxspec.testing.enumeration",
    "output_distribution": "jaxspec.testing.enumeration",
    "run_rounds": "jaxspec.testing.properties",
    "sampled_drafts": "jaxspec.testing.drafts",
    "toy_params": "jaxspec.testing.toy",
    "toy_target": "jaxspec.testing.toy",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
