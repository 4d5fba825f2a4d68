"""The `jaxspec` command."""

from jaxspec.cli.main import command, main

__all__ = ["command", "main"]
