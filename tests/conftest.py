"""Runs the whole suite on eight simulated devices, reproducibly."""

import ctypes
import gc
import os
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Machines with an accelerator may lack the checker; there, kernels are tested without.
if find_spec("beartype"):
    from tests.shape_checks import sample_checks

    sample_checks()
    install_import_hook("jaxspec", "tests.shape_checks.check_shapes")

# Most of the suite's time is compilation, of programs that run once. These flags of
# XLA's CPU compiler halve it; they are read when the first program is compiled.
# `test_compile.py`, which inspects compiled programs, resets them. Other versions of
# XLA may not have them, and fail on an unknown flag.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
if jax.__version__.startswith("0.10."):
    FLAGS += (
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
if jax.__version__.startswith(("0.7.", "0.10.")):
    os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))

jax.config.update("jax_num_cpu_devices", 8)
# Commands of the suite, and processes that it starts, keep no compiled programs in the
# home of the user. JAX takes an empty name for none.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
# Modules that take minutes go first, so that no worker runs one at the end alone.
HEAVY = (
    "tests/train/",
    "tests/drafters/",
    "tests/bench/test_speed",
    "tests/parity/test_language_models",
)


def pytest_collection_modifyitems(items):
    """Moves the longest modules to the front, and marks some variants as slow."""
    items.sort(key=lambda item: not item.nodeid.startswith(HEAVY))
    variants = defaultdict(list)
    for item in items:
        if item.get_closest_marker("variants") and not item.get_closest_marker("slow"):
            variants[item.parent.nodeid, item.originalname].append(item)
    for group in variants.values():
        count = min(group[0].get_closest_marker("variants").args[0], len(group))
        kept = {i * len(group) // count for i in range(count)}  # evenly spaced
        for i, item in enumerate(group):
            if i not in kept:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session):
    """Lets the garbage collector look at young objects alone.

    Tracing makes millions of small objects that live on; searching all of them again
    and again took 8 % of the time of two modules.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("suite")


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Drops compiled programs after a module, once a worker holds too many.

    Without `malloc_trim` the memory stays with the process, and each module after the
    first large one would drop what the next one shares with it.
    """
    yield
    status = Path("/proc/self/statm")
    if status.exists():
        resident = int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if resident > 3e9:
            jax.clear_caches()
            gc.collect()
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)
