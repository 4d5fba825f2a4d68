"""The `jaxspec` command."""

from jaxspec.cli.main import main

__all__ = ["main"]
