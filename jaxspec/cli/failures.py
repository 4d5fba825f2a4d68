"""Errors that are not the program's, each as one sentence that says what to do."""

import argparse
import os
import re
import sys

from jaxspec.errors import JaxspecError

# A kernel that asks too much of its own small memory is a fault of the program.
_KERNELS = re.compile(r"shared memory|vmem|smem", re.IGNORECASE)
_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY|Out of memory")


def sentence(error: Exception, arguments: argparse.Namespace) -> str | None:
    """What to show of an error; None where a traceback is due.

    Args:
      error: that ended a command.
      arguments: of the command, as far as they were read.
    """
    if isinstance(error, JaxspecError):
        return str(error)
    if isinstance(error, BrokenPipeError):  # other pipes are written by `writing`
        return f"cannot write to stdout: {error.strerror}"
    if isinstance(error, OSError):  # a full disk, a folder without permission
        place = f" '{error.filename}'" if error.filename else ""
        return f"{error.strerror or error}{place}"
    if isinstance(error, MemoryError):
        return f"this machine's memory is full: {_less(arguments)}"
    text = str(error)
    if isinstance(error, RuntimeError) and _MEMORY.search(text):
        if not _KERNELS.search(text):
            line = re.sub(r"\s+", " ", text)[:160]
            return (
                f"the device's memory is full: {_less(arguments)}; `jaxspec info "
                f"--plan` lists what a batch takes ({line})"
            )
    return _missing_device()


def _less(arguments: argparse.Namespace) -> str:
    if hasattr(arguments, "batch"):
        return "give a smaller --batch"
    if getattr(arguments, "command", None) == "train":
        return "give a smaller batch in the preset, or divide it with --mesh"
    return "take a machine with more"


def _missing_device() -> str | None:
    """Whether jax finds no device at all, whatever it raised about it."""
    if "jax" not in sys.modules:
        return None
    import jax

    try:
        jax.devices()
    except Exception as error:  # its kind differs from platform to platform
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = re.sub(r"\s+", " ", str(error)).partition(" (set JAX_PLATFORMS")[0]
        return (
            f"this machine has no device for JAX_PLATFORMS={wanted}: unset it, or set "
            f"it to cpu ({reason[:160] or type(error).__name__})"
        )
    return None
