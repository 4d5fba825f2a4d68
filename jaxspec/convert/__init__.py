"""Conversion of released PyTorch weights to checkpoints, and export of some back."""

from jaxspec.convert.export import export
from jaxspec.convert.run import Written, convert, prepare
from jaxspec.convert.understand import Conversion

__all__ = ["Conversion", "Written", "convert", "export", "prepare"]
