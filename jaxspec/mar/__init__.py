"""Generation of continuous tokens in random order (MAR)."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "MARGenerator": "jaxspec.mar.generator",
    "MARState": "jaxspec.mar.state",
    "MARVariables": "jaxspec.mar.state",
    "UnmaskingSchedule": "jaxspec.mar.schedule",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
