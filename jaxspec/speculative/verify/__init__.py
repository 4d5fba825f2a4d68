"""Verifiers, one file a family."""

from jaxspec.speculative.verify.annealed import Annealed
from jaxspec.speculative.verify.base import (
    LosslessVerifier,
    LossyVerifier,
    Verdict,
    Verifier,
)
from jaxspec.speculative.verify.block import Block
from jaxspec.speculative.verify.coupled import Coupled
from jaxspec.speculative.verify.coupled_relaxed import CoupledRelaxed
from jaxspec.speculative.verify.greedy_set import GreedySet
from jaxspec.speculative.verify.grouped import Grouped
from jaxspec.speculative.verify.judge import Judge
from jaxspec.speculative.verify.kseq import KSeq
from jaxspec.speculative.verify.lantern import Lantern
from jaxspec.speculative.verify.outcome import Outcome
from jaxspec.speculative.verify.rejection import Rejection
from jaxspec.speculative.verify.typical import Typical

__all__ = [
    "Annealed",
    "Block",
    "Coupled",
    "CoupledRelaxed",
    "GreedySet",
    "Grouped",
    "Judge",
    "KSeq",
    "Lantern",
    "Outcome",
    "LosslessVerifier",
    "LossyVerifier",
    "Rejection",
    "Verifier",
    "Typical",
    "Verdict",
]
