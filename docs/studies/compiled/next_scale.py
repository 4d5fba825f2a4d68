"""Programs of next-scale models for devices that are not at hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.bench.roofline.ceilings import Ceilings
from jaxspec.bench.roofline.work import Work
from jaxspec.config import NextScaleConfig
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.next_scale.presets import PRESETS
from jaxspec.next_scale import NextScaleVariables, ScaleSampling, one_model
from jaxspec.pipeline.tree_choice.compiling import Compiler
from jaxspec.tokenizers.multi_scale.scales import Scales, shared_convs


def is_next_scale(name: str) -> bool:
    """Whether a model is a published size of a next-scale model."""
    return name in PRESETS


def image_program(
    name: str, batch: int, dtype: str, compiler: Compiler
) -> Callable[[], Any]:
    """A call that compiles the program which makes all maps of images.

    Args:
      name: Published size.
      batch: Number of images.
      dtype: Dtype of weights and caches.
      compiler: Compiler of the program.
    """
    model = NextScale(PRESETS[name])
    config = model.config
    scales = Scales(config.scales, shared_convs(len(config.scales), 4), 0.5)
    sampling = ScaleSampling(len(scales), order=("temperature",))
    generator = one_model(model, scales, sampling=sampling)

    def cast(x):
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype))

    params = jax.tree.map(cast, jax.eval_shape(model.init, jax.random.key(0)))
    make = partial(scales.init, size=config.vocab_size, width=config.code_dim)
    quantizer = jax.eval_shape(make, jax.random.key(0))
    settings = jax.eval_shape(lambda: Sampling.create(batch, cfg_scale=2.0))
    keys = jax.eval_shape(lambda: batch_keys(0, batch))
    classes = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def run(variables, classes, settings, keys):
        return generator.generate(variables, classes, sampling=settings, keys=keys)

    arguments = NextScaleVariables((params,), quantizer), classes, settings, keys
    return partial(compiler, run, *arguments)


def image_bound(
    config: NextScaleConfig, batch: int, itemsize: int, ceilings: Ceilings
) -> float:
    """Lower bound of the time of all maps in seconds, by the roofline model.

    Each map reads all weights once, and keys and values of the maps up to its own.

    Args:
      config: Sizes of the network.
      batch: Number of images; guidance doubles the rows.
      itemsize: Bytes of a weight and of an entry of the cache.
      ceilings: Ceilings of the device.
    """
    rows, width = 2 * batch, config.width
    token = config.layers * (4 * width**2 + 2 * width * config.ffn_size)
    token += width * (config.vocab_size + config.code_dim)
    row = 2 * width**2
    row += 6 * width**2 * (1 if config.shared_modulation else config.layers)
    counts = np.array(config.scales) ** 2
    total = 0.0
    for count, end in zip(counts, np.cumsum(counts), strict=True):
        cached = 2 * rows * config.layers * end * width
        flops = 2 * rows * (count * token + row)
        flops += 4 * rows * config.layers * count * end * width
        work = Work(itemsize * (token + row + cached), flops)
        total += work.bound(ceilings)
    return float(total)
