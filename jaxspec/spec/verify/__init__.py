"""Verifiers, one file a family."""

from jaxspec.spec.verify.annealed import Annealed
from jaxspec.spec.verify.base import LosslessVerifier, LossyVerifier, Verdict, Verifier
from jaxspec.spec.verify.block import Block
from jaxspec.spec.verify.coupled import Coupled
from jaxspec.spec.verify.coupled_relaxed import CoupledRelaxed
from jaxspec.spec.verify.greedy_set import GreedySet
from jaxspec.spec.verify.grouped import Grouped
from jaxspec.spec.verify.judge import Judge
from jaxspec.spec.verify.kseq import KSeq
from jaxspec.spec.verify.lantern import Lantern
from jaxspec.spec.verify.law import Outcome
from jaxspec.spec.verify.rejection import Rejection
from jaxspec.spec.verify.typical import Typical

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
