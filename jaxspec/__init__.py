"""Fast, unchanged autoregressive generation in JAX.

The names below are imported when they are first used: `import jaxspec` is quick.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "BlockDiffusion": "jaxspec.drafters.block_diffusion",
    "BlockDiffusionConfig": "jaxspec.config",
    "Bundle": "jaxspec.bundle",
    "Checkpoint": "jaxspec.checkpoint",
    "Coupled": "jaxspec.spec.verify",
    "Draft": "jaxspec.spec.draft",
    "Drafter": "jaxspec.spec.draft",
    "Engine": "jaxspec.spec.state",
    "Generation": "jaxspec.spec.state",
    "JaxspecError": "jaxspec.errors",
    "KVCache": "jaxspec.spec.cache",
    "Sampling": "jaxspec.spec.sampling",
    "SpecState": "jaxspec.spec.state",
    "Target": "jaxspec.spec.target",
    "Tokenizer": "jaxspec.models.tokenizer",
    "TokenizerConfig": "jaxspec.config",
    "Transformer": "jaxspec.models.transformer",
    "TransformerConfig": "jaxspec.config",
    "Tree": "jaxspec.spec.tree",
    "Verdict": "jaxspec.spec.verify",
    "generate": "jaxspec.spec.loop",
    "init_state": "jaxspec.spec.loop",
    "load": "jaxspec.checkpoint",
    "load_bundle": "jaxspec.bundle",
    "make_sampling": "jaxspec.spec.sampling",
    "make_target": "jaxspec.models.target",
    "named_tree": "jaxspec.spec.named_trees",
    "preset": "jaxspec.models.presets",
    "row_keys": "jaxspec.spec.noise",
    "save": "jaxspec.checkpoint",
    "spec_step": "jaxspec.spec.loop",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxspec' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_HOMES])
