"""Attention with different dtypes is computed in the widest of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.nn.attention import OVER_CACHE, attend, cudnn_attend, xla_step
from jaxspec.nn.rope import split_and_rotate
from tests.nn.over_cache import arrays

kernel_step = OVER_CACHE["pallas"]
IMPLEMENTATIONS = {
    "xla": xla_step,
    "triton": partial(kernel_step, backend="triton interpreted"),
    "mosaic": partial(kernel_step, backend="mosaic interpreted"),
}
# Dtypes of queries, keys and values.
MIXED = [
    ("bfloat16", "float32", "float32"),
    ("float32", "bfloat16", "bfloat16"),
    ("float32", "float32", "bfloat16"),
    ("bfloat16", "float32", "bfloat16"),
    ("bfloat16", "float16", "float16"),
]
ids = "-".join


def float64_attention(q, k, v, mask):
    """Attention in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, length, heads, size = q.shape
    q = q.reshape(batch, length, k.shape[1], -1, size)
    scores = np.einsum("rtkgf,rksf->rkgts", q, k) * size**-0.5
    scores = np.where(np.asarray(mask)[:, None, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("rkgts,rksf->rtkgf", weights, v).reshape(batch, length, -1)


def assert_rounded_once(out, expected, dtype):
    """Checks for a float32 result that was rounded to `dtype` once."""
    assert out.dtype == dtype
    half = 0.51 * float(jnp.finfo(dtype).eps) if dtype != jnp.float32 else 0
    difference = np.abs(np.asarray(out, np.float64) - expected)
    assert (difference <= half * np.abs(expected) + 3e-6).all(), difference.max()


@pytest.mark.variants(5)
@pytest.mark.parametrize("dtypes", MIXED, ids=ids)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_several_dtypes_are_computed_in_the_widest(implementation, dtypes):
    fused, angles, mask, cache, starts = arrays(2, 5, 2, 2, 128, 32)
    fused = fused.astype(dtypes[0])
    cache = cache[0].astype(dtypes[1]), cache[1].astype(dtypes[2])
    out, written = IMPLEMENTATIONS[implementation](fused, angles, mask, cache, starts)
    assert tuple(str(x.dtype) for x in written) == dtypes[1:]
    q, _, _ = split_and_rotate(fused, angles)
    assert_rounded_once(out, float64_attention(q, *written, mask), dtypes[0])


def test_a_product_in_the_narrower_dtype_is_detected():
    """Control: keys and values rounded to the dtype of the queries."""
    fused, angles, mask, cache, starts = arrays(2, 5, 2, 2, 128, 32)
    fused, wide = fused.astype(jnp.bfloat16), cache[0].dtype
    out, written = xla_step(fused, angles, mask, cache, starts)
    narrow = (x.astype(jnp.bfloat16).astype(wide) for x in written)
    q, _, _ = split_and_rotate(fused, angles)
    with pytest.raises(AssertionError):
        assert_rounded_once(out, float64_attention(q, *narrow, mask), jnp.bfloat16)


@pytest.mark.parametrize("length", [1, 3, 600])
@pytest.mark.parametrize("dtypes", MIXED, ids=ids)
def test_any_number_of_queries(dtypes, length):
    """A TPU duplicates a single query; many queries are computed in blocks."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (1, length, 2, 8), (1, 2, 20, 8), (1, 2, 20, 8)
    q, k, v = (
        jax.random.normal(key, shape).astype(dtype)
        for key, shape, dtype in zip(keys[:3], shapes, dtypes, strict=True)
    )
    mask = jax.random.bernoulli(keys[3], 0.5, (1, length, 20)).at[:, :, 0].set(True)
    assert_rounded_once(
        attend(q, k, v, mask), float64_attention(q, k, v, mask), dtypes[0]
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_narrow_cache_holds_rounded_keys_and_values(implementation):
    """The dtype of a cache is chosen for its size in memory."""
    fused, angles, mask, cache, starts = arrays(2, 3, 1, 2, 128, 8)
    cache = tuple(x.astype(jnp.bfloat16) for x in cache)
    _, written = IMPLEMENTATIONS[implementation](fused, angles, mask, cache, starts)
    for new, buffer in zip(split_and_rotate(fused, angles)[1:], written, strict=True):
        stored = [buffer[r, :, s : s + 3] for r, s in enumerate(starts.tolist())]
        np.testing.assert_allclose(jnp.stack(stored), new, rtol=2**-8, atol=1e-30)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("wrong", ["int8", "float8_e4m3fn"])
def test_other_than_floating_point_dtypes_are_refused(implementation, wrong):
    fused, angles, mask, cache, starts = arrays(1, 2, 1, 1, 128, 8)
    cache = cache[0].astype(wrong), cache[1]
    with pytest.raises(ConfigError, match=f"is {wrong}; attention and its caches take"):
        IMPLEMENTATIONS[implementation](fused, angles, mask, cache, starts)


def test_cudnn_takes_one_dtype():
    fused, angles, mask, cache, _ = arrays(1, 1, 1, 1, 32, 8)
    q, _, _ = split_and_rotate(fused.astype(jnp.bfloat16), angles)
    with pytest.raises(ConfigError, match="q in bfloat16, k in float32, v in float32"):
        cudnn_attend(q, *cache, mask)


@pytest.mark.accelerator
@pytest.mark.parametrize("dtypes", MIXED[:4], ids=ids)
def test_accelerators_compute_in_the_widest(dtypes):
    fused, angles, mask, cache, starts = arrays(2, 26, 1, 20, 640, 64)
    fused = fused.astype(dtypes[0])
    cache = cache[0].astype(dtypes[1]), cache[1].astype(dtypes[2])
    with jax.default_matmul_precision("highest"):
        out, written = kernel_step(fused, angles, mask, cache, starts)
    q, _, _ = split_and_rotate(fused, angles)
    assert_rounded_once(out, float64_attention(q, *written, mask), dtypes[0])
