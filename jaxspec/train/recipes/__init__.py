"""What each kind of drafter guesses during training: one file a kind."""

from collections.abc import Callable
from typing import Any

from jaxspec.drafters.block_diffusion import BlockDiffusion
from jaxspec.drafters.falcon import Falcon
from jaxspec.drafters.feature_head import FeatureHead
from jaxspec.drafters.kangaroo import Kangaroo
from jaxspec.drafters.parallel_heads import ParallelHeads
from jaxspec.drafters.prompt_tokens import PromptTokens
from jaxspec.errors import ConfigError
from jaxspec.train.recipes.block_diffusion import block_guesses
from jaxspec.train.recipes.falcon import falcon_guesses
from jaxspec.train.recipes.feature_head import feature_guesses
from jaxspec.train.recipes.kangaroo import kangaroo_guesses
from jaxspec.train.recipes.lesson import Guesses
from jaxspec.train.recipes.parallel_heads import head_guesses
from jaxspec.train.recipes.prompt_tokens import prompt_token_guesses

# (drafter, own parameters, lesson, key) -> guesses
Recipe = Callable[..., Guesses]
_OF: dict[type, Recipe] = {
    BlockDiffusion: block_guesses,
    Falcon: falcon_guesses,
    FeatureHead: feature_guesses,
    Kangaroo: kangaroo_guesses,
    ParallelHeads: head_guesses,
    PromptTokens: prompt_token_guesses,
}


def recipe_of(drafter: Any) -> Recipe:
    """How a drafter is trained.

    Raises:
      ConfigError: this kind is not trained here.
    """
    if type(drafter) not in _OF:
        known = ", ".join(kind.__name__ for kind in _OF)
        raise ConfigError(
            f"{type(drafter).__name__} has no recipe; trained here are {known}"
        )
    return _OF[type(drafter)]
