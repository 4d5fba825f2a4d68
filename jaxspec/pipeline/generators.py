"""Generators of a bundle, by the configuration of its model."""

from collections.abc import Callable
from typing import Any

from jaxspec.config import TransformerConfig
from jaxspec.core.generator import Generator
from jaxspec.errors import ConfigError
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import make_engine, make_variables
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree


def make_generator(
    bundle: Bundle,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None = None,
    *,
    prompt_length: int = 0,
) -> tuple[Generator[Any], Any]:
    """Makes the generator of a bundle's model, and its variables.

    Args:
      bundle: models.
      config: generation settings.
      tree: shape of the drafts; the root alone for plain decoding.
      loaded: drafter; None for the bundle's own.
      prompt_length: tokens that prompts take of the model's sequence length.

    Raises:
      ConfigError: settings, tree and models do not go together.
    """
    kind = type(bundle.prior.config)
    if kind not in GENERATORS:
        raise ConfigError(f"bundle '{bundle.name}': {kind.__name__} does not generate")
    return GENERATORS[kind](bundle, config, tree, loaded, prompt_length)


def _autoregressive(bundle, config, tree, loaded, prompt_length):
    engine = make_engine(bundle, config, tree, loaded, prompt_length=prompt_length)
    return engine, make_variables(engine, bundle, loaded)


# A family of models that generates in another way adds its configuration here.
GENERATORS: dict[type, Callable[..., tuple[Generator[Any], Any]]] = {
    TransformerConfig: _autoregressive
}
