"""Conversion of released PyTorch weights to checkpoints, and export of some back."""

from jaxspec.convert.conversion import Written, convert, prepare
from jaxspec.convert.export import export
from jaxspec.convert.plan import Conversion

__all__ = ["Conversion", "Written", "convert", "export", "prepare"]
