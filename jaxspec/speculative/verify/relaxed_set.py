"""LANTERN's relaxed set: the nearest codes of a code whose mass fits a budget."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from jaxspec.core.numbers import whole, within
from jaxspec.errors import ConfigError
from jaxspec.speculative.verify.neighbors import Neighbors
from jaxspec.typing import Array, Float, Int, Params


def check_budget(name: str, k: int, budget: float | None, lam: float | None) -> None:
    """Refuses settings that no relaxed set can have; `name` is the budget's.

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
    """The nearest `k` codes of each token, and which of them belong to its set.

    Args:
      table: neighbors of every token; those of a token that is no code do not count.
      p_of: target probabilities of tokens; one more axis than `tokens`.
      tokens: whose sets.
      k: neighbors that are looked at.
      budget: additive (LANTERN, arXiv 2410.03355), or None for
      lam: `(lam - 1) p(token)` (LANTERN++, arXiv 2502.06352).

    Returns:
      ids, distances, masses and membership, all `[..., k]`. Members are the neighbors
      before the budget is exceeded; the token's own mass is never charged.
    """
    ids, distances = table.ids[tokens, :k], table.distances[tokens, :k]
    codes = jnp.isfinite(distances)
    masses = jnp.where(codes, p_of(ids), 0.0)
    if lam is None:
        most = 0.0 if budget is None else budget
    else:
        most = (lam - 1.0) * p_of(tokens[..., None])
    return ids, distances, masses, codes & (jnp.cumsum(masses, axis=-1) <= most)


def table_of(verifier, params: Params, k: int, vocab_size: int) -> Neighbors:
    """The neighbor table among a verifier's parameters.

    Raises:
      ConfigError: there is none, it has too few columns, or it is not of this
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
            f"{name} tests {k} neighbors, its table serves {table.most}; build a "
            "wider one with neighbor_table(codebook, k), or use a smaller k"
        )
    if len(table.ids) != vocab_size:
        raise ConfigError(
            f"{name}: the neighbor table has {len(table.ids)} rows, the vocabulary "
            f"{vocab_size} tokens; place it with for_vocabulary(vocab_size, offset)"
        )
    return table
