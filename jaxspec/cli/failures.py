"""Messages for errors that the user can fix: one sentence with the remedy."""

import argparse
import os
import re
import sys

from jaxspec.errors import JaxspecError

# A kernel that exceeds on-chip memory is a bug of the program, not a full device.
_KERNELS = re.compile(r"shared memory|vmem|smem", re.IGNORECASE)
_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY|Out of memory")


def error_message(error: Exception, arguments: argparse.Namespace) -> str | None:
    """Message to print for an error, or None if it deserves a traceback.

    Args:
      error: exception that ended a command.
      arguments: arguments of the command, as far as they were parsed.
    """
    if isinstance(error, JaxspecError):
        return str(error)
    if isinstance(error, BrokenPipeError):  # `writing` reports all other pipes
        return f"cannot write to stdout: {error.strerror}"
    if isinstance(error, OSError):  # a full disk, a folder without permission
        file = f" '{error.filename}'" if error.filename else ""
        return f"{error.strerror or error}{file}"
    if isinstance(error, MemoryError):
        return f"this machine's memory is full: {_memory_advice(arguments)}"
    text = str(error)
    if isinstance(error, RuntimeError) and _MEMORY.search(text):
        if not _KERNELS.search(text):
            line = re.sub(r"\s+", " ", text)[:160]
            return (
                f"the device's memory is full: {_memory_advice(arguments)}; `jaxspec "
                f"info --plan` lists the memory that a batch needs ({line})"
            )
    return _missing_device()


def _memory_advice(arguments: argparse.Namespace) -> str:
    """Advice on how to use less memory with the options of a command."""
    if hasattr(arguments, "batch"):
        return "give a smaller --batch"
    if getattr(arguments, "command", None) == "train":
        return "give a smaller batch in the preset, or divide it with --mesh"
    return "use a machine with more"


def _missing_device() -> str | None:
    """Message for an unavailable `JAX_PLATFORMS`, or None if jax has a device."""
    if "jax" not in sys.modules:
        return None
    import jax

    try:
        jax.devices()
    except Exception as error:  # its type differs between platforms
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = re.sub(r"\s+", " ", str(error)).partition(" (set JAX_PLATFORMS")[0]
        return (
            f"this machine has no device for JAX_PLATFORMS={platforms}: unset it, or "
            f"set it to cpu ({reason[:160] or type(error).__name__})"
        )
    return None
