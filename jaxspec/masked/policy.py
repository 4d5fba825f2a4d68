"""Contract of a policy: from sampled tokens to those that stay."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.noise import position_noise
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, PyTree

# Number of a step's noise among those of a sequence: tokens have the others.
_ORDER_COLUMN = 0


@register_dataclass
@dataclass(frozen=True)
class View:
    """A step, as policies read it.

    Attributes:
      tokens: int32 [B, T], known tokens, and samples at all others.
      known: bool [B, T], tokens that were known before the step.
      log_p: float32 [B, T], log-probability of each token in the step that sampled it.
      logits: float32 [B, T, V], logits of the step after guidance and filters.
      step: int32 [B], number of the step.
      before: int32 [B], number of tokens that the schedule has masked before the step.
      left: int32 [B], number of those after it.
      progress: float32 [B], share of the steps that are done after this one.
      keys: typed keys [B], of the order alone.
      prompt: prompts of the sequences.
      params: parameters of the policy, see `MaskedVariables`.
    """

    tokens: Int[Array, "B T"]
    known: Bool[Array, "B T"]
    log_p: Float[Array, "B T"]
    logits: Float[Array, "B T V"]
    step: Int[Array, "B"]
    before: Int[Array, "B"]
    left: Int[Array, "B"]
    progress: Float[Array, "B"]
    keys: BatchKeys
    prompt: PyTree = None
    params: PyTree = None

    def gumbel(self) -> Float[Array, "B T"]:
        """Gumbel noise of each position in this step, independent of the tokens'."""
        length = self.tokens.shape[1]
        positions = (
            self.step[:, None] * length + jnp.arange(length, dtype=jnp.int32)[None]
        )
        return position_noise(self.keys, positions, 1)[..., _ORDER_COLUMN]


class Policy(Protocol):
    """Decides which tokens are known after a step; static and hashable.

    A policy may also mask tokens again that were known. One that never does has an
    attribute `revises` that is False; its sequences end at a stop token before which
    everything is known. One that reads `View.params` has `has_params = True`. One for
    some models alone has a method `check_model(config)` that raises `ConfigError`. The
    last step of the schedule keeps every token, whatever the policy returns.
    """

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """Mask of the tokens that are known after the step."""
        ...


def highest(scores: Float[Array, "B T"], count: Int[Array, "B"]) -> Bool[Array, "B T"]:
    """Mask of the `count` highest scores of each row; of equal ones the first."""
    rank = jnp.argsort(jnp.argsort(-scores, axis=1, stable=True), axis=1)
    return rank < count[:, None]


def revealed(view: View, scores: Float[Array, "B T"]) -> Bool[Array, "B T"]:
    """Known tokens, and as many of the others with high scores as the schedule asks."""
    scores = jnp.where(view.known, jnp.inf, scores)
    return view.known | highest(scores, view.tokens.shape[1] - view.left)


def revealed_inside(
    policy: Policy, view: View, inside: Bool[Array, "B T"]
) -> Bool[Array, "B T"]:
    """Known tokens after a policy may reveal some of the masked tokens alone.

    It reveals as many as the schedule asks, and those that were too many for what
    earlier steps could reveal.

    Args:
      policy: policy that masks no token again.
      view: the step.
      inside: tokens that may become known.
    """
    masked = jnp.sum(inside & ~view.known, axis=1, dtype=jnp.int32)
    behind = jnp.sum(~view.known, axis=1, dtype=jnp.int32) - view.left
    part = replace(
        view,
        known=view.known | ~inside,
        before=masked,
        left=jnp.maximum(masked - jnp.maximum(view.before - view.left, behind), 0),
    )
    return view.known | (policy.reveal(part) & inside)


def check_inner(policy: Any) -> None:
    """Checks the policy inside of one that passes a changed view on to it.

    Raises:
      ConfigError: it masks tokens again, or both have parameters.
    """
    inner, name = policy.policy, type(policy).__name__
    if getattr(inner, "revises", True):
        raise ConfigError(f"{name} is for policies that mask no token again")
    if getattr(policy, "has_params", False) and has_params(inner):
        raise ConfigError(f"{name} and the policy inside of it both have parameters")


def nested(policy: Any) -> list[Any]:
    """A policy, the one inside of it, and so on."""
    found = [policy]
    while (inner := getattr(found[-1], "policy", None)) is not None:
        found.append(inner)
    return found


def has_params(policy: Any) -> bool:
    """Whether a policy, or one inside of it, reads `View.params`."""
    return any(getattr(each, "has_params", False) for each in nested(policy))


def check_params(policy: Any, params: PyTree) -> None:
    """Checks that a policy has got its parameters.

    Raises:
      ConfigError: it has none.
    """
    if params is None:
        raise ConfigError(
            f"{type(policy).__name__} has parameters: MaskedVariables(params, policy)"
        )
