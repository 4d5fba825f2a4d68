"""Errors that are not the program's, each as one sentence that says what to do."""

import os
import re
import sys

from jaxspec.errors import JaxspecError

# A kernel that asks too much of its own small memory is a fault of the program.
_KERNELS = re.compile(r"shared memory|vmem|smem", re.IGNORECASE)
_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY|Out of memory")


def sentence(error: Exception, has_batch: bool) -> str | None:
    """What to show of an error; None where a traceback is due.

    Args:
      error: that ended a command.
      has_batch: whether the command has the option `--batch`.
    """
    if isinstance(error, JaxspecError):
        return str(error)
    if isinstance(error, BrokenPipeError):  # other pipes are written by `writing`
        return f"cannot write to stdout: {error.strerror}"
    if isinstance(error, OSError):  # a full disk, a folder without permission
        place = f" '{error.filename}'" if error.filename else ""
        return f"{error.strerror or error}{place}"
    smaller = "a smaller --batch" if has_batch else "a smaller batch in the preset"
    if isinstance(error, MemoryError):
        return f"this machine's memory is full: give {smaller}"
    text = str(error)
    if isinstance(error, RuntimeError) and _MEMORY.search(text):
        if not _KERNELS.search(text):
            line = re.sub(r"\s+", " ", text)[:160]
            return (
                f"the device's memory is full: give {smaller}; `jaxspec info --plan` "
                f"lists what a batch takes ({line})"
            )
    return _missing_device()


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
