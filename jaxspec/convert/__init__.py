"""Conversion of released PyTorch weights to checkpoints, and export of some back."""

from jaxspec.convert.conversion import convert, prepare
from jaxspec.convert.export import export
from jaxspec.convert.plan import Conversion
from jaxspec.convert.summary import Written

__all__ = ["Conversion", "Written", "convert", "export", "prepare"]
