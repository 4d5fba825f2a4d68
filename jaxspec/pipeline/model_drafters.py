"""Drafters made of models over the target's tokens, by their training objectives."""

from dataclasses import replace

import jax

from jaxspec.checkpoint import Checkpoint
from jaxspec.drafters.draft_model.drafter import DraftModel
from jaxspec.drafters.dynamic_exit.drafter import DynamicExit
from jaxspec.drafters.inline_blocks.drafter import tidar
from jaxspec.drafters.masked.deer import Deer
from jaxspec.drafters.masked.diffuspec import DiffuSpec
from jaxspec.errors import CheckpointError
from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES, MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline.bundle import Bundle, prepared
from jaxspec.pipeline.loaded_drafter import LoadedDrafter, recorded_acceptance
from jaxspec.speculative.draft import Drafter
from jaxspec.typing import Params

SHARED = ("vocab_size", "condition", "classes", "rope", "order", "sequence_length")


def load_model_drafter(
    name: str, checkpoint: Checkpoint, bundle: Bundle
) -> LoadedDrafter:
    """Makes a drafter of a model; how it drafts follows from how it was trained.

    Args:
      name: name in reports.
      checkpoint: a model over the tokens of the bundle's prior.
      bundle: the bundle that it drafts for.

    Raises:
      CheckpointError: the model has other tokens, conditions or lengths than the prior,
        or an unknown objective.
    """
    config, target = checkpoint.config, bundle.prior.config
    # Such models score the cells of a grid in any order.
    any_order = checkpoint.metadata.get("objective") in (
        "any_order",
        *MASKED_OBJECTIVES,
    )
    if any_order and config.rope == target.rope == "grid":
        config = replace(config, order=target.order)
        checkpoint = replace(checkpoint, config=config)
    for field in SHARED:
        found, expected = getattr(config, field), getattr(target, field)
        if found != expected:
            raise CheckpointError(
                f"the model in '{name}' has {field} {found}, the prior {expected}: "
                "they must share tokens and conditions"
            )
    objective = checkpoint.metadata.get("objective", "next")
    if objective not in _MAKERS:
        raise CheckpointError(
            f"the model in '{name}' was trained for {objective!r}; a drafter is one of "
            f"{', '.join(_MAKERS)}"
        )
    params = checkpoint.params
    drafter, params, prior = _MAKERS[objective](
        checkpoint, quantized(params) if bundle.int8 else params, bundle
    )
    return LoadedDrafter(
        name,
        drafter,
        params,
        size=sum(x.size for x in jax.tree.leaves(checkpoint.params)),
        trained_seconds=checkpoint.metadata.get("metrics", {}).get("seconds"),
        prior=prior,
        acceptance=recorded_acceptance(checkpoint),
    )


# Drafter, its parameters, and the target that it brings with it.
_Made = tuple[Drafter, Params, Checkpoint | None]


def _draft_model(checkpoint: Checkpoint, params: Params, bundle: Bundle) -> _Made:
    cfg = checkpoint.config.condition != "none"
    return DraftModel(Transformer(checkpoint.config).as_target(cfg=cfg)), params, None


def _dynamic_exit(checkpoint: Checkpoint, params: Params, bundle: Bundle) -> _Made:
    config, target = checkpoint.config, bundle.prior.config
    drafter = DynamicExit(
        config,
        (*checkpoint.metadata["exits"], config.layers),
        verify_cost=target.layers * (target.width / config.width) ** 2,
        cfg=config.condition != "none",
    )
    return drafter, params, None


def _diffuspec(checkpoint: Checkpoint, params: Params, bundle: Bundle) -> _Made:
    config = checkpoint.config
    model = MaskedDiffusion(
        Transformer(config), bool(checkpoint.metadata.get("shifted"))
    )
    length = None if config.condition == "none" else config.sequence_length
    drafter = DiffuSpec(model, config.vocab_size, length=length)
    return drafter, {"model": params, "counts": None}, None


def _tidar(checkpoint: Checkpoint, params: Params, bundle: Bundle) -> _Made:
    prior = prepared(
        checkpoint,
        dtype=activation_dtype(bundle.prior.params),
        mesh=bundle.mesh,
        place=bundle.place,
        int8=bundle.int8,
    )
    return tidar(prior.config, checkpoint.metadata["block"]), None, prior


def _deer(checkpoint: Checkpoint, params: Params, bundle: Bundle) -> _Made:
    config = checkpoint.config
    model = Transformer(config).as_target(cfg=config.condition != "none")
    return Deer(model, checkpoint.metadata["block"], config.vocab_size), params, None


_MAKERS = {
    "next": _draft_model,
    "any_order": _draft_model,
    "sorted": _dynamic_exit,
    **dict.fromkeys(MASKED_OBJECTIVES, _diffuspec),
    "tidar": _tidar,
    "continuation": _deer,
    "refinement": _deer,
}
