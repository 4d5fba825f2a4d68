"""What the program runs on."""

import os
import platform

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
