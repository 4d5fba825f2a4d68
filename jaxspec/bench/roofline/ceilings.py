"""Measured memory bandwidth and peak FLOP rate of a device."""

import time
from dataclasses import asdict, dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Ceilings:
    """Ceilings of the roofline model, as the best of several runs.

    Attributes:
      bytes_per_second: Bandwidth of device memory, reads and writes.
      flops_per_second: Rate of a large matrix product; a multiply-add is two FLOPs.
      dtype: Dtype of the matrix product.
    """

    bytes_per_second: float
    flops_per_second: float
    dtype: str

    def fields(self) -> dict[str, float | str]:
        """Fields of a report."""
        return asdict(self)


@lru_cache
def measure_ceilings(dtype: str) -> Ceilings:
    """Measures the default device; takes a few seconds, once per process.

    Bandwidth is the better of a copy (bytes read and written) and of a vector times a
    large matrix (bytes read), the access pattern of decoding.

    Args:
      dtype: Dtype of the arrays.
    """
    cpu = jax.devices()[0].platform == "cpu"
    side, width = (2048, 8192) if cpu else (8192, 32768)
    kind = jnp.dtype(dtype)
    keys = jax.random.split(jax.random.key(0))
    large = jnp.tile(jax.random.normal(keys[0], (64, width), kind), (width // 64, 1))
    vector = jax.random.normal(keys[1], (2, width), kind)
    size = large.size * kind.itemsize
    copy = _best(lambda: _negative(large))
    read = _best(lambda: _product(vector, large))
    square = large[:side, :side]
    product = _best(lambda: _product(square, square))
    return Ceilings(max(2 * size / copy, size / read), 2 * side**3 / product, dtype)


_negative = jax.jit(jnp.negative)
_product = jax.jit(partial(jnp.matmul, precision="highest"))


def _best(call, runs: int = 5) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return min(seconds)
