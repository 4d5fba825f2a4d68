"""Models of the scales of a generation, and checks that they fit each other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxspec.errors import ConfigError

if TYPE_CHECKING:
    from jaxspec.next_scale.generator import NextScaleGenerator


@dataclass(frozen=True)
class Stage:
    """Model of one scale.

    Attributes:
      model: index of the model.
      layers: layers that are used, in ascending order; None for all.
    """

    model: int = 0
    layers: tuple[int, ...] | None = None


def check_generator(generator: "NextScaleGenerator") -> None:
    """Checks that models, scales, stages and plans fit each other.

    Raises:
      ConfigError: they do not.
    """
    _check_models(generator)
    counts = {len(generator.stages), generator.sampling.count, len(generator.scales)}
    if len(counts) > 1:
        raise ConfigError(
            f"{len(generator.stages)} stages and sampling of "
            f"{generator.sampling.count} do not fit {len(generator.scales)} scales"
        )
    _check_stages(generator)
    if generator.refinement is not None:
        generator.refinement.check(generator.scales)
        for i, stage in enumerate(generator.stages):
            if generator.refinement.passes(i) > 1 and not generator.refines(stage):
                raise ConfigError(
                    f"scale {i} has further passes, which need a model with "
                    "mask_layers and all its layers; give it one pass"
                )
        if generator.sampling.smooth:
            raise ConfigError("maps of mixtures are not refined; use smooth=False")
    if generator.skipping is not None:
        generator.skipping.check(generator.scales.sides)
        alone = any(model.config.attends == "own" for model in generator.models)
        if len(generator.models) > 1 or alone:
            raise ConfigError(
                "tokens are left out by one model that reads earlier maps; use "
                "skipping=None"
            )
    if generator.local is not None:
        generator.local.check(generator.scales.sides)
        if any(model.config.attends == "own" for model in generator.models):
            raise ConfigError(
                "models that attend to their own map alone read nothing far away; use "
                "local=None"
            )
        if generator.skipping is not None:
            raise ConfigError(
                "maps with tokens left out are read whole; choose skipping or local"
            )
    if not 0 <= generator.prefix < generator.scales.ends[-1]:
        raise ConfigError(f"{generator.prefix} given tokens leave nothing to generate")


def _check_models(generator: "NextScaleGenerator") -> None:
    for model in generator.models:
        if model.config.scales != generator.scales.sides:
            raise ConfigError(
                f"a model of the scales {model.config.scales} does not fit a "
                f"tokenizer of {generator.scales.sides}"
            )
    kinds = {
        (c.vocab_size, c.code_dim, c.classes)
        for c in (model.config for model in generator.models)
    }
    if len(kinds) > 1:
        raise ConfigError(
            "models of one image have the same vocabulary, codes and classes; "
            f"these have {sorted(kinds)}"
        )


def _check_stages(generator: "NextScaleGenerator") -> None:
    for i, stage in enumerate(generator.stages):
        if not 0 <= stage.model < len(generator.models):
            raise ConfigError(f"scale {i} has the model {stage.model}, which is none")
        depth = generator.models[stage.model].config.layers
        layers = range(depth) if stage.layers is None else stage.layers
        used = set(layers)
        if list(layers) != sorted(used) or not used <= set(range(depth)) or not used:
            raise ConfigError(
                f"scale {i} has the layers {stage.layers}; name some of {depth} in "
                "ascending order"
            )
        for earlier in generator.stages[:i]:
            if generator.models[stage.model].config.attends == "own":
                break  # reads nothing of earlier scales
            if earlier.model == stage.model and earlier.layers is not None:
                if not used <= set(earlier.layers):
                    raise ConfigError(
                        f"scale {i} uses layers that an earlier scale left out"
                    )
