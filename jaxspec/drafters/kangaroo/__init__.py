"""Kangaroo: an adapter on an early layer of the target."""

from jaxspec.drafters.kangaroo.drafter import Kangaroo, KangarooConfig
from jaxspec.drafters.kangaroo.training import kangaroo_outputs
from jaxspec.drafters.kind import DrafterKind

KIND = DrafterKind("kangaroo", KangarooConfig, Kangaroo, kangaroo_outputs)

__all__ = ["KIND", "Kangaroo", "KangarooConfig"]
