"""Published sizes of MAR (arXiv 2406.11838)."""

from jaxspec.config.mar import MARConfig
from jaxspec.models.presets import named


def _sized(layers: int, width: int, heads: int, head: tuple[int, int]) -> MARConfig:
    return MARConfig(
        encoder_layers=layers,
        decoder_layers=layers,
        width=width,
        heads=heads,
        head_layers=head[0],
        head_width=head[1],
    )


PRESETS = {
    "mar-b": _sized(12, 768, 12, (6, 1024)),
    "mar-l": _sized(16, 1024, 16, (8, 1280)),
    "mar-h": _sized(20, 1280, 16, (12, 1536)),
}


def preset(name: str) -> MARConfig:
    """Configuration of a published model, such as `preset("mar-b")`.

    Raises:
      ConfigError: the name is unknown.
    """
    return named(PRESETS, name)
