"""Relaxed sets of LANTERN: nearest neighbors within a probability budget."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from jaxspec.core.numbers import whole, within
from jaxspec.errors import ConfigError
from jaxspec.speculative.verify.neighbors import Neighbors
from jaxspec.typing import Array, Float, Int, Params


def check_budget(name: str, k: int, budget: float | None, lam: float | None) -> None:
    """Checks the settings of a relaxed set.

    Args:
      name: name of the additive budget, for errors.
      k: number of neighbors that may be in the set.
      budget: additive budget; None if `lam` is given.
      lam: factor of the relative budget; None if `budget` is given.

    Traced numbers are not checked, so that a verifier can be built inside a traced
    function, from settings that are its arguments.

    Raises:
      ConfigError: none or both of the budgets are given, or a value is out of range.
    """
    whole("k", k)
    if (budget is None) == (lam is None):
        both = "both" if lam is not None else "none"
        raise ConfigError(f"give an additive {name} or lam; {both} was given")
    if budget is not None and is_concrete(budget) and not 0 <= budget <= 1:
        raise ConfigError(f"{name}={budget} is not in [0, 1]")
    if lam is not None and is_concrete(lam):
        within("lam", lam, 1.0)


def is_concrete(number: Any) -> bool:
    """Whether a setting is a number, not a traced array."""
    return not isinstance(number, Tracer)


def relaxed_set(
    table: Neighbors,
    p_of: Callable[[Int[Array, "... m"]], Float[Array, "... m"]],
    tokens: Int[Array, "..."],
    k: int,
    budget: float | None,
    lam: float | None,
) -> tuple[Array, Array, Array, Array]:
    """Nearest neighbors of tokens, and which of them are in the relaxed set.

    Args:
      table: neighbors of every token; a token that is no codebook entry has none.
      p_of: function from ids [..., m] of tokens to their target probabilities.
      tokens: int32, tokens whose relaxed sets are computed.
      k: number of neighbors that may be in a set.
      budget: largest total probability of a set (LANTERN, arXiv 2410.03355); None if
        `lam` is given.
      lam: factor of the relative budget `(lam - 1) p(token)` (LANTERN++, arXiv
        2502.06352); None if `budget` is given.

    Returns:
      Ids, distances, probabilities and membership of the neighbors, all [..., k].
      Members are the neighbors before the budget is exceeded; the probability of the
      token itself does not count.
    """
    ids, distances = table.ids[tokens, :k], table.distances[tokens, :k]
    is_entry = jnp.isfinite(distances)
    masses = jnp.where(is_entry, p_of(ids), 0.0)
    if lam is None:
        limit = 0.0 if budget is None else budget
    else:
        limit = (lam - 1.0) * p_of(tokens[..., None])
    return ids, distances, masses, is_entry & (jnp.cumsum(masses, axis=-1) <= limit)


def table_of(verifier, params: Params, k: int, vocab_size: int) -> Neighbors:
    """Returns the neighbor table of the parameters of a verifier.

    Raises:
      ConfigError: there is no table, it has too few columns, or it is for another
        vocabulary.
    """
    table = None if params is None else params.get("neighbors")
    name = type(verifier).__name__
    if table is None:
        raise ConfigError(
            f"{name} needs params={{'neighbors': neighbor_table(codebook, k)}}"
        )
    if table.most < k:
        raise ConfigError(
            f"{name} tests {k} neighbors, but its table has {table.most}; build a "
            "wider one with neighbor_table(codebook, k), or use a smaller k"
        )
    if len(table.ids) != vocab_size:
        raise ConfigError(
            f"{name}: the neighbor table has {len(table.ids)} tokens, the vocabulary "
            f"{vocab_size}; convert it with for_vocabulary(vocab_size, offset)"
        )
    return table
