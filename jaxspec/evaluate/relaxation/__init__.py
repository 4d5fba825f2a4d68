"""Comparison of lossy verifiers: acceptance, tokens per call and distortion."""

from jaxspec.evaluate.relaxation.compare import VerifierComparison, compare_verifiers

__all__ = ["VerifierComparison", "compare_verifiers"]
