"""Generators of the next-scale family: one model, two of them, or fewer layers.

Scales of a model with `mask_layers`, all of whose layers are used, are refined as
published (HMAR) unless options name another `refinement`.
"""

from dataclasses import replace

from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale.generator import NextScaleGenerator
from jaxspec.next_scale.refinement import Refinement, published_counts
from jaxspec.next_scale.sampling import ScaleSampling
from jaxspec.next_scale.stages import Stage
from jaxspec.tokenizers.multi_scale.scales import Scales

# CoDe's temperatures: 1.1 at this many first scales, then 1.
_WARM_SCALES, _WARM = 7, 1.1


def one_model(
    model: NextScale,
    scales: Scales,
    *,
    sampling: ScaleSampling | None = None,
    **options,
) -> NextScaleGenerator:
    """One model for all scales (VAR, arXiv 2404.02905; HMAR, arXiv 2506.04421).

    Args:
      model: the model.
      scales: functions of its tokenizer.
      sampling: settings that depend on the scale; None for those of VAR.
      **options: further fields of `NextScaleGenerator`.
    """
    count = len(scales)
    sampling = sampling or ScaleSampling(count)
    return _refined((model,), scales, (Stage(),) * count, sampling, **options)


def collaborative(
    large: NextScale,
    small: NextScale,
    scales: Scales,
    count: int,
    *,
    sampling: ScaleSampling | None = None,
    **options,
) -> NextScaleGenerator:
    """A large model for the first scales, a small one for the others. Lossy.

    Source: CoDe (arXiv 2411.17787). The small model reads the scales of the large one
    in the pass that makes its own first scale.

    Args:
      large: model of the first scales, whose parameters are the first of the variables.
      small: model of the others.
      scales: functions of the tokenizer of both.
      count: number of scales of the large model, `N` in the paper.
      sampling: settings that depend on the scale; None for those of CoDe.
      **options: further fields of `NextScaleGenerator`.

    Raises:
      ConfigError: `count` leaves one of the models without a scale.
    """
    total = len(scales)
    if not 1 <= count < total:
        raise ConfigError(
            f"{count} scales of the large model; choose 1 to {total - 1} of {total}"
        )
    warm = tuple(_WARM if k < _WARM_SCALES else 1.0 for k in range(total))
    stages = (Stage(0),) * count + (Stage(1),) * (total - count)
    sampling = sampling or ScaleSampling(total, temperatures=warm)
    return _refined((large, small), scales, stages, sampling, **options)


def fewer_layers(
    model: NextScale,
    scales: Scales,
    count: int,
    layers: int,
    *,
    sampling: ScaleSampling | None = None,
    **options,
) -> NextScaleGenerator:
    """All layers for the first scales, evenly spaced ones for the others. Lossy.

    Source: VARiant (arXiv 2511.16546).

    Args:
      model: the model, trained for subsets of its layers.
      scales: functions of its tokenizer.
      count: number of scales with all layers.
      layers: number of layers at the others.
      sampling: settings that depend on the scale; None for those of VAR.
      **options: further fields of `NextScaleGenerator`.

    Raises:
      ConfigError: the numbers of scales or layers are impossible.
    """
    total, depth = len(scales), model.config.layers
    if not 1 <= count <= total:
        raise ConfigError(f"{count} scales with all layers; choose 1 to {total}")
    subset = spaced_layers(depth, layers)
    stages = (Stage(),) * count + (Stage(layers=subset),) * (total - count)
    sampling = sampling or ScaleSampling(total)
    return _refined((model,), scales, stages, sampling, **options)


def _refined(models, scales, stages, sampling, **options) -> NextScaleGenerator:
    """A generator whose scales are refined as published where its models can."""
    generator = NextScaleGenerator(models, scales, stages, sampling)
    counts = tuple(
        passes if generator.refines(stage) else (sum(passes),)
        for stage, passes in zip(stages, published_counts(scales.sides), strict=True)
    )
    some = any(len(passes) > 1 for passes in counts)
    default = {"refinement": Refinement(counts) if some else None}
    return replace(generator, **{**default, **options})


def spaced_layers(depth: int, count: int) -> tuple[int, ...]:
    """`count` evenly spaced layers of `depth`, the first and the last among them.

    Raises:
      ConfigError: there are fewer than two, or more than `depth`.
    """
    if not 2 <= count <= depth:
        raise ConfigError(f"{count} layers of {depth}; choose 2 to {depth}")
    return tuple(round(i * (depth - 1) / (count - 1)) for i in range(count))
