"""Parallel prompt decoding: trained prompt tokens within the verify pass."""

from jaxspec.drafters.kind import DrafterKind
from jaxspec.drafters.ppd.drafter import PPD, PPDConfig
from jaxspec.drafters.ppd.training import ppd_outputs

KIND = DrafterKind("ppd", PPDConfig, PPD, ppd_outputs)

__all__ = ["KIND", "PPD", "PPDConfig"]
