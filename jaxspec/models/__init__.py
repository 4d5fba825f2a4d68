"""Networks as pure functions."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "Caption": "jaxspec.models.transformer.prompts",
    "Classifier": "jaxspec.models.classifier.model",
    "Matcher": "jaxspec.models.matcher.model",
    "MatcherConfig": "jaxspec.models.matcher.model",
    "MaskedDiffusion": "jaxspec.models.masked_lm.model",
    "RopeScaling": "jaxspec.config",
    "TextEncoder": "jaxspec.models.t5.model",
    "TextEncoderConfig": "jaxspec.config",
    "TokenPrompt": "jaxspec.models.transformer.prompts",
    "Transformer": "jaxspec.models.transformer.model",
    "TransformerConfig": "jaxspec.config",
    "preset": "jaxspec.models.transformer.presets",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
