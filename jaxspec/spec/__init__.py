"""The speculative engine: trees, verifiers, caches and the loop; knows no model."""

from jaxspec.spec.acceptance import optimal_acceptance

__all__ = ["optimal_acceptance"]
