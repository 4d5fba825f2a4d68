"""Fast, unchanged autoregressive generation in JAX.

Names are imported when they are first used: `import jaxspec` is quick. Namespaces:
`drafters`, `verify` (verifiers), `trees` (draft trees), `models`, `tokenizers`,
`sharding`, `testing`, `train`.
"""

from jaxspec.core.lazy import lazy_names

__version__ = "0.1.0"

_MODULES = {
    "drafters": "jaxspec.drafters",
    "models": "jaxspec.models",
    "sharding": "jaxspec.sharding",
    "testing": "jaxspec.testing",
    "tokenizers": "jaxspec.tokenizers",
    "train": "jaxspec.train",
    "trees": "jaxspec.speculative.trees",
    "verify": "jaxspec.speculative.verify",
}
_NAMES = {
    "Draft": "jaxspec.speculative.draft",
    "DraftContext": "jaxspec.speculative.draft",
    "Drafter": "jaxspec.speculative.draft",
    "Engine": "jaxspec.speculative.engine",
    "Generation": "jaxspec.core.result",
    "GenerationConfig": "jaxspec.pipeline.config",
    "Generator": "jaxspec.core.generator",
    "InitContext": "jaxspec.speculative.draft",
    "JaxspecError": "jaxspec.errors",
    "KVCache": "jaxspec.core.kv_cache",
    "Pipeline": "jaxspec.pipeline.pipeline",
    "Prefixed": "jaxspec.speculative.prefix",
    "RoundResult": "jaxspec.speculative.draft",
    "Sampling": "jaxspec.core.sampling",
    "StoppingCriteria": "jaxspec.core.stopping",
    "Target": "jaxspec.speculative.target",
    "Transformer": "jaxspec.models.transformer.model",
    "TransformerConfig": "jaxspec.config",
    "Tree": "jaxspec.speculative.trees.tree",
    "Variables": "jaxspec.speculative.state",
    "batch_keys": "jaxspec.core.noise",
    "load": "jaxspec.pipeline.load",
    "load_pipeline": "jaxspec.pipeline.pipeline",
    "save": "jaxspec.checkpoint",
}
__all__ = [*_MODULES, *_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES, _MODULES)
