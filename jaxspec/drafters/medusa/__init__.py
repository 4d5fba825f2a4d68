"""Medusa and Hydra: parallel heads on target features."""

from jaxspec.drafters.kind import DrafterKind
from jaxspec.drafters.medusa.drafter import Medusa
from jaxspec.drafters.medusa.network import MedusaConfig
from jaxspec.drafters.medusa.training import medusa_outputs

KIND = DrafterKind("medusa", MedusaConfig, Medusa, medusa_outputs)

__all__ = ["KIND", "Medusa", "MedusaConfig"]
