"""What the program runs on."""

import os
import platform
import tempfile

import jax


def device_name() -> str:
    """The default device in words, for example `cpu (2 cores, x86_64)`."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu ({os.cpu_count()} cores, {platform.machine()})"
    return f"{device.platform} ({device.device_kind})"


def default_dtype() -> str:
    """What speed is measured in: bfloat16, on a CPU float32."""
    return "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"


def enable_compile_cache(folder: str) -> None:
    """Keeps every program compiled from now on in a folder, and takes them from there.

    For this process; JAX's own settings otherwise stay. Entries hold machine code: the
    folder must not be writable by others.

    Raises:
      OSError: the folder cannot be made or written.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
