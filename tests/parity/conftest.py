"""How both sides of every comparison run."""

import jax
import pytest


@pytest.fixture(autouse=True)
def full_precision():
    """Float32 without shortcuts."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """The networks are tiny: waiting for other threads would take most of the time."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
