"""Verifiers, neighbor tables and the highest possible acceptance."""

from jaxspec.core.noise import Noise, draw_noise
from jaxspec.speculative.verify.acceptance import optimal_acceptance
from jaxspec.speculative.verify.annealed import Annealed
from jaxspec.speculative.verify.base import Verdict, Verifier
from jaxspec.speculative.verify.block import Block
from jaxspec.speculative.verify.coupled import Coupled
from jaxspec.speculative.verify.coupled_relaxed import CoupledRelaxed
from jaxspec.speculative.verify.entropic import Entropic
from jaxspec.speculative.verify.greedy_set import GreedySet
from jaxspec.speculative.verify.grouped import Grouped
from jaxspec.speculative.verify.judge import Judge
from jaxspec.speculative.verify.kseq import KSeq
from jaxspec.speculative.verify.lantern import Lantern
from jaxspec.speculative.verify.neighbors import Neighbors, neighbor_table
from jaxspec.speculative.verify.outcome import Outcome, OutcomeVerifier
from jaxspec.speculative.verify.rejection import Rejection
from jaxspec.speculative.verify.skipped import Skipped
from jaxspec.speculative.verify.typical import Typical

__all__ = [
    "Annealed",
    "Block",
    "Coupled",
    "CoupledRelaxed",
    "Entropic",
    "GreedySet",
    "Grouped",
    "Judge",
    "KSeq",
    "Lantern",
    "Neighbors",
    "Noise",
    "Outcome",
    "OutcomeVerifier",
    "Rejection",
    "Skipped",
    "Typical",
    "Verdict",
    "Verifier",
    "draw_noise",
    "neighbor_table",
    "optimal_acceptance",
]
