"""Drafters by name, with the parameters that a bundle gives them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from jaxspec.checkpoint import Checkpoint, checkpoint_of, digest_of, load_checkpoint
from jaxspec.config import TransformerConfig
from jaxspec.config.checks import whole_number
from jaxspec.drafters.combine.jacobi_mix import JacobiMix
from jaxspec.drafters.draft_model.drafter import early_exit
from jaxspec.drafters.kind import ExtendsTarget
from jaxspec.drafters.registry import DRAFTERS
from jaxspec.drafters.training_free.grid_jacobi import GridJacobi
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.drafters.training_free.ngram import NgramTable
from jaxspec.drafters.training_free.prompt_lookup import PromptLookup
from jaxspec.drafters.training_free.recycling import TokenRecycling
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline.bundle import Bundle, cast_floats
from jaxspec.pipeline.loaded_drafter import (
    LoadedDrafter,
    recorded_acceptance,
    recorded_by_size,
)
from jaxspec.pipeline.model_drafters import load_model_drafter
from jaxspec.speculative.draft import Drafter


def grid_jacobi(config: TransformerConfig) -> GridJacobi:
    """Makes a `GridJacobi` for a model.

    Raises:
      ConfigError: the tokens of the model are no grid.
    """
    if config.rope != "grid":
        raise ConfigError(
            "grid-jacobi is for tokens of a grid, which this model has not; take jacobi"
        )
    return GridJacobi(config.vocab_size, config.grid, config.order)


# Drafters without training, by their names on the command line.
TRAINING_FREE: dict[str, Callable[[TransformerConfig], Drafter]] = {
    "jacobi": lambda config: Jacobi(config.vocab_size),
    "grid-jacobi": grid_jacobi,
    "recycling": lambda config: TokenRecycling(config.vocab_size, 32),
    "ngrams": lambda config: NgramTable(
        config.vocab_size,
        (1, config.grid if config.order == "raster" else 2),
        1 << 14,
        16,
    ),
    "prompt-lookup": lambda config: PromptLookup(),
}
# The bundle's drafter without the target's last logits, see `JacobiMix`.
UNMIXED = "unmixed"
NAMES = ", ".join((UNMIXED, *TRAINING_FREE, "early-exit-LAYERS"))


def _bundled_drafter(bundle: Bundle) -> LoadedDrafter:
    """Loads the drafter of a bundle.

    Raises:
      ConfigError: it holds none.
    """
    if bundle.drafter is None:
        raise ConfigError(
            f"bundle '{bundle.name}' has no drafter of its own; name another, such as "
            "recycling"
        )
    return _load_trained(bundle.drafter.kind, bundle.drafter, bundle)


def untrained_drafter(bundle: Bundle) -> str:
    """Name of the drafter that replaces a bundle's own, if it has none.

    For images that is the one with the most tokens per call, see docs/drafters.md; for
    text the one that copies from the prompt.
    """
    config = bundle.prior.config
    if config.condition == "none":
        return "prompt-lookup"
    return "jacobi" if config.order == "raster" else "grid-jacobi"


def drafter_of(name: str | None, bundle: Bundle) -> LoadedDrafter | None:
    """Loads a drafter by name, if the model is one whose tokens are drafted.

    Args:
      name: name or folder, as `load_drafter` takes them; None or "none" for no drafter.
        "own" is none for a model that does not generate token by token.
      bundle: models.

    Raises:
      ConfigError: no such drafter.
      CheckpointError: the folder cannot be used.
    """
    drafted = bundle.family == "autoregressive"
    if name in (None, "none") or (name == "own" and not drafted):
        return None
    return load_drafter(name, bundle)


def load_drafter(name: str, bundle: Bundle) -> LoadedDrafter:
    """Loads a drafter by name: the bundle's own ("own"), one of `NAMES`, or a folder.

    For a bundle without a drafter "own" is `untrained_drafter`. A folder holds a
    drafter that was trained for the bundle's prior, or any model over the same tokens,
    which drafts according to its training objective.

    Raises:
      ConfigError: no such drafter.
      CheckpointError: the folder cannot be used.
    """
    config = bundle.prior.config
    if bundle.family != "autoregressive":
        raise ConfigError(
            f"bundle '{bundle.name}' does not generate token by token, and drafters "
            "draft tokens; use the drafter none"
        )
    if name == "own" and bundle.drafter is None:
        name = untrained_drafter(bundle)
    if name == "own" or bundle.drafter is not None and name == bundle.drafter.kind:
        return _bundled_drafter(bundle)
    if name == UNMIXED:
        loaded = replace(_bundled_drafter(bundle), name=UNMIXED)
        own = loaded.drafter
        alone = own.drafter if isinstance(own, JacobiMix) else own
        return replace(loaded, drafter=alone)
    if name in TRAINING_FREE:
        by_size = recorded_by_size(bundle.prior, name)
        return LoadedDrafter(name, TRAINING_FREE[name](config), None, by_size=by_size)
    layers = whole_number(name.removeprefix("early-exit-"))
    if name.startswith("early-exit-") and layers is not None:
        drafter = early_exit(config, layers, cfg=config.condition != "none")
        return LoadedDrafter(name, drafter, bundle.prior.params)
    if Path(name).is_dir():
        return _load_folder(name, bundle)
    raise ConfigError(
        f"no drafter '{name}'; use own, {NAMES}, or the folder of one that was trained "
        "for this prior"
    )


def _load_folder(path: str, bundle: Bundle) -> LoadedDrafter:
    name, folder = Path(path).name, checkpoint_of(path, "drafter")
    folder = checkpoint_of(folder, "prior")  # of a working folder without a drafter
    checkpoint = load_checkpoint(folder, sharding=bundle.place)
    if checkpoint.kind == "prior":
        return load_model_drafter(name, checkpoint, bundle)
    if checkpoint.kind not in DRAFTERS:
        raise CheckpointError(f"'{path}' holds a {checkpoint.kind}, no drafter")
    digest = checkpoint.metadata.get("target_digest")
    same = checkpoint.target in (bundle.prior.config, bundle.trained)
    if not same or digest not in (None, digest_of(bundle.prior)):
        raise CheckpointError(
            f"the drafter in '{path}' was trained for another prior than that of "
            f"bundle '{bundle.name}'"
        )
    return _load_trained(name, checkpoint, bundle)


def _load_trained(name: str, checkpoint: Checkpoint, bundle: Bundle) -> LoadedDrafter:
    drafter = replace(checkpoint, target=bundle.prior.config).model
    prior = bundle.prior
    metrics = checkpoint.metadata.get("metrics", {})
    loaded = LoadedDrafter(
        name,
        drafter,
        None,
        size=sum(x.size for x in jax.tree.leaves(checkpoint.params)),
        trained_seconds=metrics.get("seconds"),
        acceptance=recorded_acceptance(checkpoint),
        overlap=metrics.get("overlap_1"),
    )
    if isinstance(drafter, ExtendsTarget):
        extended = replace(
            prior,
            config=drafter.extended_target,
            params=drafter.extend_params(checkpoint.params, prior.params),
        )
        return replace(loaded, drafter=drafter.drafter, prior=extended)
    weight = checkpoint.metadata.get("jacobi_weight", 0.0)
    if weight:
        drafter = JacobiMix(drafter, prior.config.vocab_size, weight)
        loaded = replace(loaded, drafter=drafter)
    own = cast_floats(checkpoint.params, activation_dtype(prior.params))
    own = quantized(own) if bundle.int8 else own
    return replace(loaded, params=drafter.with_target_params(own, prior.params))
