"""Verification rules, one file a family."""

from jaxspec.spec.verify.base import Rule, Verdict
from jaxspec.spec.verify.coupled import Coupled

__all__ = ["Coupled", "Rule", "Verdict"]
