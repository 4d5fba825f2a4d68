"""Default device, its measuring dtype, and the compilation cache."""

import os
import platform
import tempfile

import jax


def device_name() -> str:
    """Description of the default device, for example `cpu (2 cores, x86_64)`."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu ({os.cpu_count()} cores, {platform.machine()})"
    return f"{device.platform} ({device.device_kind})"


def default_dtype() -> str:
    """Dtype of speed measurements: float32 on a CPU, bfloat16 elsewhere."""
    return "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"


def enable_compile_cache(folder: str) -> None:
    """Enables JAX's persistent compilation cache for this process.

    Every program is cached, whatever its compile time and size; JAX's other settings do
    not change. Entries hold machine code: the folder must not be writable by others.

    Args:
      folder: cache folder; created if missing.

    Raises:
      OSError: the folder cannot be created or written.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
