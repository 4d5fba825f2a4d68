"""Engine and variables of a bundle."""

from dataclasses import replace

import jax.numpy as jnp

from jaxspec.core.sampling import active_steps
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.verifiers import verifier_params
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Verifier


def make_engine(
    bundle: Bundle,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None = None,
    *,
    prompt_length: int = 0,
) -> Engine:
    """Makes the engine of a bundle; a tree of the root alone decodes plainly.

    Args:
      bundle: models.
      config: generation settings.
      tree: shape of the drafts.
      loaded: drafter; None for the bundle's own.
      prompt_length: tokens that prompts take of the model's sequence length.

    Raises:
      ConfigError: the tree does not suit the drafter.
    """
    bundle = bundle_for(bundle, loaded)
    model = Transformer(bundle.prior.config, config.attention)
    drafter = None
    if tree.size > 1:
        loaded = loaded or load_drafter("own", bundle)
        loaded.check_tree(tree)
        drafter = loaded.drafter
    room = model.config.sequence_length - prompt_length
    # Passes in bfloat16 differ by too much for near-ties to be rare.
    exact = activation_dtype(bundle.prior.params) == jnp.float32
    return Engine(
        target=model.as_target(cfg=config.cfg_scale != 1.0),
        max_new_tokens=min(room, config.max_new_tokens or room),
        drafter=drafter,
        tree=tree,
        verifier=verifier_in_use(config, tree),
        order=active_steps(config.sampling()),
        tie_margin=Engine.tie_margin if exact else 0.0,
        cache_stages=config.cache_stages,
    )


def make_variables(
    engine: Engine, bundle: Bundle, loaded: LoadedDrafter | None
) -> Variables:
    """Collects the arrays that an engine of `make_engine` reads."""
    if engine.drafter is not None:
        loaded = loaded or load_drafter("own", bundle)
    return Variables(
        bundle_for(bundle, loaded).prior.params,
        loaded.params if loaded and engine.drafter is not None else None,
        verifier_params(engine.verifier, bundle),
    )


def bundle_for(bundle: Bundle, loaded: LoadedDrafter | None) -> Bundle:
    """The bundle, with the prior that a drafter brings if it brings one."""
    if loaded is None or loaded.prior is None:
        return bundle
    return replace(bundle, prior=loaded.prior)


def verifier_in_use(config: GenerationConfig, tree: Tree | DynamicTree) -> Verifier:
    """The verifier of the settings; `Coupled` if there is no draft to verify."""
    return config.verifier if tree.size > 1 else Coupled()
