"""Numeric settings of verifiers as traced arrays, so that a sweep compiles once."""

from dataclasses import replace
from typing import Any

from jaxspec.speculative.verify import CoupledRelaxed, Lantern

_NAMES = ("delta", "budget", "lam", "radius")


def split_amounts(verifier: Any) -> tuple[Any, dict[str, float]]:
    """Splits a verifier into a template, equal for all amounts, and its amounts.

    `join_amounts` makes the verifier again; under `jit` the amounts may be traced.
    Verifiers that check their settings eagerly have no amounts.
    """
    if not isinstance(verifier, (Lantern, CoupledRelaxed)):
        return verifier, {}
    values = {name: getattr(verifier, name, None) for name in _NAMES}
    amounts = {name: float(x) for name, x in values.items() if x is not None}
    return replace(verifier, **dict.fromkeys(amounts, 1.0)), amounts


def join_amounts(template: Any, amounts: dict[str, Any]) -> Any:
    """Joins what `split_amounts` returned."""
    return replace(template, **amounts) if amounts else template
