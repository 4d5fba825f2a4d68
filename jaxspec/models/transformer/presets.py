"""Published decoder sizes of LlamaGen (arXiv 2406.06525, table 1 and released code)."""

from dataclasses import replace

from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError

# Number of layers, number of heads and model width by name.
SIZES = {
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "XXXL": (48, 40, 2560),
    "1B": (22, 32, 2048),
    "3B": (24, 32, 3200),
    "7B": (32, 32, 4096),
}
NAMES = tuple(f"gpt-{size.lower()}" for size in SIZES)


def preset(name: str, condition: str = "class", grid: int = 16) -> TransformerConfig:
    """Configuration of a LlamaGen model, as in `preset("gpt-xl", "caption", grid=32)`.

    Args:
      name: size, one of `NAMES`.
      condition: "class" (ImageNet, 1000 classes) or "caption" (120 T5 features).
      grid: tokens per side: 16, 24 or 32 for images of 256, 384 or 512 pixels.

    Raises:
      ConfigError: the name or the condition is unknown.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(NAMES)}")
    if condition not in ("class", "caption"):
        raise ConfigError(f"condition={condition!r} must be 'class' or 'caption'")
    layers, heads, width = SIZES[name.removeprefix("gpt-").upper()]
    base = TransformerConfig(layers=layers, heads=heads, width=width, grid=grid)
    return replace(base, condition=condition)
