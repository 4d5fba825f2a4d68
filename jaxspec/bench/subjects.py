"""What is measured: a bundle by name, in a dtype."""

from dataclasses import replace
from functools import lru_cache, partial

import jax

from jaxspec.bench.synthetic import synthetic_bundle, synthetic_params
from jaxspec.bundle import Bundle, load_bundle
from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.presets import NAMES, preset
from jaxspec.typing import Params

DEFAULT = "default"


@lru_cache(maxsize=3)
def find_subject(
    name: str,
    *,
    grid: int = 24,
    dtype: str | None = None,
    int8: bool = False,
    checkpoint: str | None = None,
) -> Bundle:
    """A bundle, "default"; or a published size with random weights. The last are kept.

    Args:
      name: "default" or one of `models.presets.NAMES`.
      grid: tokens along a side, of a size.
      dtype: of weights and caches; None is float32.
      int8: matrices in eight bits.
      checkpoint: the folder that "default" means; None is the embedded bundle.

    Raises:
      ConfigError: no such name, or a text model.
    """
    if name == DEFAULT:
        bundle = load_bundle(checkpoint, dtype=dtype, int8=int8)
        if bundle.prior.config.condition != "class":
            raise ConfigError("this measures models that draw classes")
        return replace(bundle, name="default") if checkpoint is None else bundle
    if name not in NAMES:
        known = ", ".join((DEFAULT, *NAMES))
        raise ConfigError(f"unknown model {name!r}; choose one of {known}")
    return synthetic_bundle(name, grid, dtype or "float32", int8)


def find_shapes(
    name: str, *, grid: int, dtype: str, int8: bool, checkpoint: str | None
) -> tuple[TransformerConfig, Params]:
    """A target's sizes and the shapes of its parameters; see `find_subject`."""
    if name in NAMES:
        config = preset(name, "class", grid)
        return config, jax.eval_shape(partial(synthetic_params, config, dtype, int8))
    bundle = find_subject(name, dtype=dtype, int8=int8, checkpoint=checkpoint)
    shapes = jax.eval_shape(lambda: bundle.prior.params)
    return bundle.prior.config, shapes
