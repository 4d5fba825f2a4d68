"""Policies by name, for command lines and pipelines."""

import math
from collections.abc import Callable

from jaxspec.config.orders import cells_of
from jaxspec.errors import ConfigError
from jaxspec.masked.policies.bernoulli import Bernoulli
from jaxspec.masked.policies.blocks import Blocks
from jaxspec.masked.policies.confidence import Confidence
from jaxspec.masked.policies.order import FixedOrder, RandomOrder
from jaxspec.masked.policies.revision import Revision
from jaxspec.masked.policies.threshold import Threshold
from jaxspec.masked.policy import Policy, has_params

DEFAULT_POLICY = "confidence"
# Name: the policy of a number, and that number if the name has none. Numbers are
# temperatures of the choice, a probability, a share of tokens or tokens of a block.
_WITH_NUMBER: dict[str, tuple[Callable[[float], Policy], float]] = {
    "confidence": (lambda x: Confidence("sampled", x), 4.5),
    "likeliest": (lambda x: Confidence("likeliest", x), 0.0),
    "margin": (lambda x: Confidence("margin", x), 0.0),
    "entropy": (lambda x: Confidence("entropy", x), 0.0),
    "threshold": (Threshold, 0.9),
    "revision": (lambda x: Revision(Confidence(), x), 0.1),
    "blocks": (lambda x: Blocks(Confidence("sampled", 0.0), _count(x)), 32.0),
}
_OF_TOKENS: dict[str, Callable[[int], Policy]] = {
    "random": lambda tokens: RandomOrder(),
    "coins": lambda tokens: Bernoulli(),
    "raster": lambda tokens: FixedOrder(tuple(range(tokens))),
    "halton": lambda tokens: FixedOrder(cells_of("halton", _side(tokens))),
}


def named_policy(name: str | Policy, tokens: int) -> Policy:
    """A policy by name: "confidence", "likeliest", "margin", "entropy", "threshold",
    "revision" or "blocks", alone or with a number as in "threshold-0.8"; "random",
    "halton", "raster" or "coins".

    Args:
      name: the name; a policy is returned as it is.
      tokens: number of tokens of a sequence.

    Raises:
      ConfigError: there is no such policy, the number is impossible, or the policy has
        parameters, for which `MaskedVariables` has a place and names have none.
    """
    if callable(getattr(name, "reveal", None)):
        assert not isinstance(name, str)
        if has_params(name):
            raise ConfigError(
                f"{type(name).__name__} has parameters: use a MaskedGenerator with "
                "MaskedVariables(params, policy)"
            )
        return name
    if not isinstance(name, str):
        raise ConfigError(f"policy={name!r} is no name of a policy")
    kind, _, text = name.partition("-")
    if kind in _OF_TOKENS and not text:
        return _OF_TOKENS[kind](tokens)
    if kind in _WITH_NUMBER:
        make, number = _WITH_NUMBER[kind]
        if text:
            try:
                number = float(text)
            except ValueError:
                number = math.nan
        return make(number)
    known = ", ".join([*_WITH_NUMBER, *_OF_TOKENS])
    raise ConfigError(f"no policy {name[:40]!r}; choose one of {known}")


def check_policy(name: str | Policy) -> None:
    """Raises `ConfigError` if `named_policy` does not know a name."""
    named_policy(name, 1)


def _count(number: float) -> int:
    """A number of tokens.

    Raises:
      ConfigError: it is not whole.
    """
    if not number.is_integer():
        raise ConfigError(f"blocks-{number:g}: choose a whole number of tokens")
    return int(number)


def _side(tokens: int) -> int:
    """Side of a square grid.

    Raises:
      ConfigError: the tokens fill none.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConfigError(f"{tokens} tokens are no square grid, which halton orders")
    return side
