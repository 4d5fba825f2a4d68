"""EAGLE-1, EAGLE-3 and LANTERN: one layer on target features."""

from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.drafters.eagle.training import eagle_outputs
from jaxspec.drafters.kind import DrafterKind

KIND = DrafterKind("eagle", EagleConfig, Eagle, eagle_outputs)

__all__ = ["KIND", "Eagle", "EagleConfig"]
