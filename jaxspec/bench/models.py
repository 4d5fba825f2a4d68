"""Models for benchmarks: a checkpoint, or a published size with random weights."""

from dataclasses import replace
from functools import lru_cache, partial

import jax

from jaxspec.bench.synthetic import synthetic_bundle, synthetic_params
from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.presets import NAMES, preset
from jaxspec.pipeline.bundle import Bundle, load_bundle, token_by_token
from jaxspec.pipeline.embedded import CLASSES
from jaxspec.typing import Params

DEFAULT = "default"


@lru_cache(maxsize=3)
def find_model(
    name: str,
    *,
    grid: int = 24,
    dtype: str | None = None,
    int8: bool = False,
    checkpoint: str | None = None,
) -> Bundle:
    """Loads a bundle, or makes one of a published size; caches the last three.

    Args:
      name: "default" for a bundle, or one of `models.transformer.presets.NAMES`.
      grid: Tokens along a side, for published sizes.
      dtype: Dtype of weights and caches; None is float32.
      int8: Whether weight matrices are quantized to int8.
      checkpoint: Bundle folder that "default" refers to; None is the embedded bundle.

    Raises:
      ConfigError: The name is unknown, or the bundle is not class-conditional.
    """
    if name == DEFAULT:
        bundle = load_bundle(checkpoint or CLASSES, dtype=dtype, int8=int8)
        bundle = token_by_token(bundle)
        if bundle.prior.config.condition != "class":
            raise ConfigError(
                f"bundle '{bundle.name}' is not class-conditional; this benchmark "
                "needs a class-conditional image model"
            )
        return replace(bundle, name="default") if checkpoint is None else bundle
    if name not in NAMES:
        known = ", ".join((DEFAULT, *NAMES))
        raise ConfigError(f"unknown model {name!r}; choose one of {known}")
    return synthetic_bundle(name, grid, dtype or "float32", int8)


def find_shapes(
    name: str, *, grid: int, dtype: str, int8: bool, checkpoint: str | None
) -> tuple[TransformerConfig, Params]:
    """Config and parameter shapes of a target; arguments as in `find_model`."""
    if name in NAMES:
        config = preset(name, "class", grid)
        return config, jax.eval_shape(partial(synthetic_params, config, dtype, int8))
    bundle = find_model(name, dtype=dtype, int8=int8, checkpoint=checkpoint)
    shapes = jax.eval_shape(lambda: bundle.prior.params)
    return bundle.prior.config, shapes
