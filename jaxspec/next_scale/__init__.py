"""Next-scale generation (VAR and its family)."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "CoupledScales": "jaxspec.next_scale.coupled",
    "LocalAttention": "jaxspec.models.next_scale.local",
    "NextScaleGenerator": "jaxspec.next_scale.generator",
    "NextScaleState": "jaxspec.next_scale.state",
    "NextScaleVariables": "jaxspec.next_scale.state",
    "Refinement": "jaxspec.next_scale.refinement",
    "ScaleSampling": "jaxspec.next_scale.sampling",
    "Stage": "jaxspec.next_scale.stages",
    "TokenSkipping": "jaxspec.models.next_scale.skipping",
    "collaborative": "jaxspec.next_scale.plans",
    "coupled_scales": "jaxspec.next_scale.coupled",
    "fewer_layers": "jaxspec.next_scale.plans",
    "one_model": "jaxspec.next_scale.plans",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
