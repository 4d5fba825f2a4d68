"""Precision and threads of all comparisons."""

import jax
import pytest


@pytest.fixture(autouse=True)
def full_precision():
    """Full float32 precision of matrix products."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """One thread: several threads mostly wait, as the networks are tiny."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
