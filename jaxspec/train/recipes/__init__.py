"""What each kind of drafter guesses during training: one file a kind."""

from collections.abc import Callable
from typing import Any

from jaxspec.drafters.block_diffusion import DFlash
from jaxspec.drafters.falcon import Falcon
from jaxspec.drafters.feature_head import Eagle
from jaxspec.drafters.kangaroo import Kangaroo
from jaxspec.drafters.parallel_heads import Medusa
from jaxspec.drafters.prompt_tokens import PPD
from jaxspec.errors import ConfigError
from jaxspec.train.recipes.block_diffusion import block_guesses
from jaxspec.train.recipes.falcon import falcon_guesses
from jaxspec.train.recipes.feature_head import feature_guesses
from jaxspec.train.recipes.kangaroo import kangaroo_guesses
from jaxspec.train.recipes.lesson import DrafterOutputs
from jaxspec.train.recipes.parallel_heads import head_guesses
from jaxspec.train.recipes.prompt_tokens import prompt_token_guesses

# (drafter, own parameters, lesson, key) -> guesses
Recipe = Callable[..., DrafterOutputs]
_OF: dict[type, Recipe] = {
    DFlash: block_guesses,
    Falcon: falcon_guesses,
    Eagle: feature_guesses,
    Kangaroo: kangaroo_guesses,
    Medusa: head_guesses,
    PPD: prompt_token_guesses,
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
