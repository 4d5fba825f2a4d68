"""Generation of continuous tokens in random order (MAR)."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "CoupledMAR": "jaxspec.mar.coupled",
    "DensityTest": "jaxspec.mar.density",
    "MARGenerator": "jaxspec.mar.generator",
    "MARState": "jaxspec.mar.state",
    "MARVariables": "jaxspec.mar.state",
    "RELEASED": "jaxspec.mar.density",
    "SpeculativeMAR": "jaxspec.mar.speculative",
    "UnmaskingSchedule": "jaxspec.mar.schedule",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
