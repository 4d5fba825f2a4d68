"""Generation by masked models, and the policies that decide what becomes known next."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "Bernoulli": "jaxspec.masked.policies.bernoulli",
    "Blocks": "jaxspec.masked.policies.blocks",
    "Confidence": "jaxspec.masked.policies.confidence",
    "ContextCache": "jaxspec.masked.context",
    "FixedOrder": "jaxspec.masked.policies.order",
    "Guided": "jaxspec.masked.policies.guided",
    "LengthControl": "jaxspec.masked.length",
    "MaskedGenerator": "jaxspec.masked.generator",
    "MaskedState": "jaxspec.masked.state",
    "MaskedVariables": "jaxspec.masked.state",
    "MaskingSchedule": "jaxspec.masked.schedule",
    "Policy": "jaxspec.masked.policy",
    "RandomOrder": "jaxspec.masked.policies.order",
    "Revision": "jaxspec.masked.policies.revision",
    "StopFilter": "jaxspec.masked.policies.stop_filter",
    "Threshold": "jaxspec.masked.policies.threshold",
    "View": "jaxspec.masked.policy",
    "Window": "jaxspec.masked.policies.blocks",
    "halton_order": "jaxspec.config.orders",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
