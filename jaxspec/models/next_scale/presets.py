"""Published sizes of VAR (arXiv 2404.02905) and HMAR (arXiv 2506.04421)."""

from jaxspec.config import NextScaleConfig
from jaxspec.config.next_scale import SCALES_512
from jaxspec.models.presets import named


def _sized(depth: int, **options) -> NextScaleConfig:
    """A model whose width and heads follow from its depth."""
    return NextScaleConfig(layers=depth, width=64 * depth, heads=depth, **options)


PRESETS = {
    "var-d16": _sized(16),
    "var-d20": _sized(20),
    "var-d24": _sized(24),
    "var-d30": _sized(30),
    "var-d36-s": _sized(36, scales=SCALES_512, shared_modulation=True),
    "hmar-d16": _sized(16, attends="own", mask_layers=8),
    "hmar-d20": _sized(20, attends="own", mask_layers=8),
    "hmar-d24": _sized(24, attends="own", mask_layers=8),
    "hmar-d30": _sized(30, attends="own", mask_layers=8),
}


def preset(name: str) -> NextScaleConfig:
    """Configuration of a published model, such as `preset("var-d16")`.

    Raises:
      ConfigError: the name is unknown.
    """
    return named(PRESETS, name)
