"""Runs the whole suite on eight simulated devices, reproducibly."""

import jax
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")
