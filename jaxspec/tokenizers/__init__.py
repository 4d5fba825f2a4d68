"""Image tokenizers."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "Tokenizer": "jaxspec.tokenizers.vqgan.model",
    "TokenizerConfig": "jaxspec.config",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
