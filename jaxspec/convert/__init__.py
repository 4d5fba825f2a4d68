"""Weights of other frameworks in, exactly, and some of ours out."""

from jaxspec.convert.export import export
from jaxspec.convert.run import Conversion, Written, convert, prepare

__all__ = ["Conversion", "Written", "convert", "export", "prepare"]
