"""LANTERN's relaxed set: the nearest codes of a code whose mass fits a budget."""

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.spec.neighbours import Neighbours
from jaxspec.typing import Array, Bool, Float, Params


def check_budget(k: int, budget: float | None, lam: float | None) -> None:
    """Refuses settings that no relaxed set can have.

    Raises:
      ConfigError: none or both of the budgets are given, or a value is out of range.
    """
    if k < 1:
        raise ConfigError(f"k={k} must be at least 1")
    if (budget is None) == (lam is None):
        raise ConfigError("give either an additive budget (delta) or lam, not both")
    if budget is not None and not 0 <= budget <= 1:
        raise ConfigError(f"an additive budget of {budget} is not in [0, 1]")
    if lam is not None and not lam >= 1:
        raise ConfigError(f"lam={lam} must be at least 1")


def within_budget(
    masses: Float[Array, "... k"],
    p_token: Float[Array, "..."],
    budget: float | None,
    lam: float | None,
) -> Bool[Array, "... k"]:
    """Which neighbours fit, nearest first: those before the budget is exceeded.

    Args:
      masses: target probabilities of a token's neighbours.
      p_token: of the token itself, which is never charged.
      budget: additive (LANTERN, arXiv 2410.03355), or None for
      lam: `(lam - 1) p_token` (LANTERN++, arXiv 2502.06352).
    """
    return jnp.cumsum(masses, axis=-1) <= most_mass(p_token, budget, lam)[..., None]


def most_mass(
    p_token: Float[Array, "..."], budget: float | None, lam: float | None
) -> Float[Array, "..."]:
    """The budget of each token."""
    if lam is not None:
        return (lam - 1.0) * p_token
    return jnp.full_like(p_token, 0.0 if budget is None else budget)


def table_of(rule, params: Params, k: int) -> Neighbours:
    """The neighbour table among a rule's parameters.

    Raises:
      ConfigError: there is none, or it has too few columns.
    """
    table = None if params is None else params.get("neighbours")
    name = type(rule).__name__
    if table is None:
        raise ConfigError(
            f"{name} needs params={{'neighbours': neighbour_table(codebook, k)}}"
        )
    if table.most < k:
        raise ConfigError(
            f"{name} tests {k} neighbours, its table serves {table.most}; build a "
            "wider one with neighbour_table(codebook, k), or use a smaller k"
        )
    return table
