"""Watermark of image tokens: swaps between similar codes, and its detection."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "Key": "jaxspec.watermark.key",
    "Detection": "jaxspec.watermark.detection",
    "codebook_digest": "jaxspec.watermark.key",
    "detect": "jaxspec.watermark.detection",
    "green_codes": "jaxspec.watermark.key",
    "mark": "jaxspec.watermark.marking",
    "new_key": "jaxspec.watermark.key",
    "pair_codes": "jaxspec.watermark.pairing",
    "read_key": "jaxspec.watermark.key",
    "write_key": "jaxspec.watermark.key",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
