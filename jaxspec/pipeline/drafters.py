"""Drafters by name, with the parameters that a bundle gives them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxspec.checkpoint import Checkpoint, digest_of, load_checkpoint
from jaxspec.config.checks import whole_number
from jaxspec.drafters.draft_model.drafter import DraftModel, early_exit
from jaxspec.drafters.draft_model.dynamic_exit import DynamicExit
from jaxspec.drafters.inline_blocks.drafter import tidar
from jaxspec.drafters.masked.deer import Deer
from jaxspec.drafters.masked.diffuspec import DiffuSpec
from jaxspec.drafters.ppd.drafter import PPD
from jaxspec.drafters.registry import DRAFTERS
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.drafters.training_free.ngram import NgramTable
from jaxspec.drafters.training_free.prompt_lookup import PromptLookup
from jaxspec.drafters.training_free.recycling import TokenRecycling
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline.bundle import Bundle, cast_floats, prepared
from jaxspec.speculative.draft import Drafter
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.parsing import tree_for
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params

# What `load_drafter` knows besides a bundle's own drafter and folders.
NAMES = "jacobi, recycling, ngrams, prompt-lookup, early-exit-LAYERS"


@dataclass(frozen=True)
class LoadedDrafter:
    """Drafter with its parameters, for the prior of a bundle.

    Attributes:
      name: name in reports.
      drafter: static functions of the drafter.
      params: parameters, together with those of the target that the drafter reads.
      size: number of parameters of the drafter alone.
      trained_seconds: time of its training, in seconds; None if it was not trained.
      prior: the target, if the drafter is part of it.
      acceptance: measured acceptance by depth and rank, see `Tree.optimal`; None if it
        was not measured.
    """

    name: str
    drafter: Drafter
    params: Params
    size: int = 0
    trained_seconds: float | None = None
    prior: Checkpoint | None = None
    acceptance: tuple[tuple[float, ...], ...] | None = None

    def tree(self, name: str | None = None) -> Tree | DynamicTree:
        """Draft tree by name, or the default of the device, see `tree_for`.

        Raises:
          ConfigError: no such tree.
        """
        return tree_for(self.drafter, name, self.acceptance)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that the drafter cannot fill.

        Raises:
          ConfigError: the drafter cannot fill the tree.
        """
        check = getattr(self.drafter, "check_tree", None)
        if check is not None:
            check(tree)


def bundled_drafter(bundle: Bundle) -> LoadedDrafter:
    """Loads the drafter of a bundle.

    Raises:
      ConfigError: it holds none.
    """
    if bundle.drafter is None:
        raise ConfigError(
            f"bundle '{bundle.name}' has no drafter of its own; name another, such as "
            "recycling"
        )
    return _trained(bundle.drafter.kind, bundle.drafter, bundle)


def load_drafter(name: str, bundle: Bundle) -> LoadedDrafter:
    """Loads a drafter by name: the bundle's own ("own"), one of `NAMES`, or a folder.

    A folder holds a drafter that was trained for the bundle's prior, or any model over
    the same tokens, which drafts according to its training objective.

    Raises:
      ConfigError: no such drafter.
      CheckpointError: the folder cannot be used.
    """
    config = bundle.prior.config
    if name in ("own", "dflash"):
        return bundled_drafter(bundle)
    simple = {
        "jacobi": lambda: Jacobi(config.vocab_size),
        "recycling": lambda: TokenRecycling(config.vocab_size, 32),
        "ngrams": lambda: NgramTable(config.vocab_size, (1, config.grid), 1 << 14, 16),
        "prompt-lookup": lambda: PromptLookup(),
    }
    if name in simple:
        return LoadedDrafter(name, simple[name](), None)
    layers = whole_number(name.removeprefix("early-exit-"))
    if name.startswith("early-exit-") and layers is not None:
        drafter = early_exit(config, layers, cfg=config.condition != "none")
        return LoadedDrafter(name, drafter, bundle.prior.params)
    if Path(name).is_dir():
        checkpoint = load_checkpoint(name, sharding=bundle.place)
        if checkpoint.kind == "prior":
            return _model(Path(name).name, checkpoint, bundle)
        if checkpoint.kind not in DRAFTERS:
            raise CheckpointError(f"'{name}' holds a {checkpoint.kind}, no drafter")
        wanted = checkpoint.metadata.get("target_digest")
        same = checkpoint.target in (config, bundle.trained)
        if not same or wanted not in (None, digest_of(bundle.prior)):
            raise CheckpointError(
                f"the drafter in '{name}' was trained for another prior than that of "
                f"bundle '{bundle.name}'"
            )
        return _trained(Path(name).name, checkpoint, bundle)
    raise ConfigError(
        f"no drafter '{name}'; use own, {NAMES}, or the folder of one that was trained "
        "for this prior"
    )


def _model(name: str, checkpoint: Checkpoint, bundle: Bundle) -> LoadedDrafter:
    """A model over the same codes; how it drafts is how it was trained."""
    config, target, metadata = (
        checkpoint.config,
        bundle.prior.config,
        checkpoint.metadata,
    )
    for field in ("vocab_size", "condition", "classes", "rope", "sequence_length"):
        mine, theirs = getattr(config, field), getattr(target, field)
        if mine != theirs:
            raise CheckpointError(
                f"the model in '{name}' has {field} {mine}, the prior {theirs}; they "
                "must share tokens and conditions"
            )
    model, mask = Transformer(config), config.vocab_size
    as_target, params = (
        model.as_target(cfg=config.condition != "none"),
        checkpoint.params,
    )
    if bundle.int8:
        params = quantized(params)
    objective, prior = metadata.get("objective", "next"), None
    if objective == "next":
        drafter = DraftModel(as_target)
    elif objective == "sorted":
        drafter = DynamicExit(
            config,
            (*metadata["exits"], config.layers),
            verify_cost=target.layers * (target.width / config.width) ** 2,
            cfg=config.condition != "none",
        )
    elif objective == "masked":
        masked = MaskedDiffusion(model, bool(metadata.get("shifted")))
        places = None if config.condition == "none" else config.sequence_length
        drafter = DiffuSpec(masked, mask, length=places)
        params = {"model": params, "counts": None}
    elif objective == "tidar":
        prior = prepared(
            checkpoint,
            dtype=activation_dtype(bundle.prior.params),
            mesh=bundle.mesh,
            place=bundle.place,
            int8=bundle.int8,
        )
        drafter, params = tidar(prior.config, metadata["block"]), None
    else:
        drafter = Deer(as_target, metadata["block"], mask)
    size = sum(x.size for x in jax.tree.leaves(checkpoint.params))
    seconds = metadata.get("metrics", {}).get("seconds")
    return LoadedDrafter(
        name, drafter, params, size, seconds, prior, _acceptance(checkpoint)
    )


def _trained(name: str, checkpoint: Any, bundle: Bundle) -> LoadedDrafter:
    drafter = replace(checkpoint, target=bundle.prior.config).model
    prior = bundle.prior.params
    own = cast_floats(checkpoint.params, activation_dtype(prior))
    params = drafter.with_target_params(quantized(own) if bundle.int8 else own, prior)
    size = sum(x.size for x in jax.tree.leaves(checkpoint.params))
    seconds = checkpoint.metadata.get("metrics", {}).get("seconds")
    acceptance = _acceptance(checkpoint)
    if isinstance(drafter, PPD):
        widened = drafter.target_params(checkpoint.params, prior)
        brought = replace(bundle.prior, config=drafter.widened, params=widened)
        return LoadedDrafter(
            name, drafter.drafter, None, size, seconds, brought, acceptance
        )
    return LoadedDrafter(name, drafter, params, size, seconds, acceptance=acceptance)


def _acceptance(checkpoint: Checkpoint) -> tuple[tuple[float, ...], ...] | None:
    """Acceptance that was measured for a checkpoint and recorded in its metadata."""
    rows = checkpoint.metadata.get("acceptance")
    return rows and tuple(tuple(map(float, row)) for row in rows)
