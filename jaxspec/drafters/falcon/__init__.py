"""Falcon: an LSTM and relaxed causal attention on target features."""

from jaxspec.drafters.falcon.drafter import Falcon
from jaxspec.drafters.falcon.network import FalconConfig
from jaxspec.drafters.falcon.training import falcon_outputs
from jaxspec.drafters.kind import DrafterKind

KIND = DrafterKind("falcon", FalconConfig, Falcon, falcon_outputs)

__all__ = ["KIND", "Falcon", "FalconConfig"]
