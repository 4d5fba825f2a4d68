"""Attention kernels over a cache match plain XLA and read only visible blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.config import TransformerConfig
from jaxspec.core import kv_cache as spec_cache
from jaxspec.core.kv_cache import gather_path
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.nn import attention
from jaxspec.nn.attention import OVER_CACHE, attend, cudnn_attend, xla_step
from jaxspec.nn.kernels.cached_attention import kernel_gather_path
from jaxspec.nn.kernels.mosaic_attention import _heads_per_program
from jaxspec.nn.rope import split_and_rotate
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.table_drafter import TableDrafter
from tests.nn.over_cache import arrays

KERNELS = ("triton interpreted", "mosaic interpreted")
kernel_step = OVER_CACHE["pallas"]
DEVICES = {
    "cuda": ("NVIDIA H100 80GB HBM3", None, "gpu"),
    "tpu": ("TPU v5 lite", 1, "tpu"),
}
LAUNCHES = {
    "cuda": "custom_call @__gpu$xla.gpu.triton",
    "tpu": "custom_call @tpu_custom_call",
}


def lowered(function, platform, *shapes):
    """Lowered text for a platform, with an abstract device that Pallas can query."""
    device = jax.sharding.AbstractDevice(*DEVICES[platform])
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    precise = jax.default_matmul_precision("highest")
    with jax.sharding.use_abstract_mesh(mesh), precise:
        traced = jax.jit(function).trace(*shapes)
        return traced.lower(lowering_platforms=(platform,)).as_text()


def assert_close(result, expected, atol=2e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=atol), result, expected
    )


@pytest.mark.variants(1)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=3)
@given(
    batch=st.integers(1, 3),
    length=st.sampled_from([1, 5, 40]),
    heads=st.sampled_from([(1, 1), (1, 3), (2, 2)]),
    slots=st.sampled_from([128, 256]),
    size=st.sampled_from([8, 32]),
    seed=st.integers(0, 100),
)
def test_kernels_match_xla(kernel, batch, length, heads, slots, size, seed):
    inputs = arrays(batch, length, *heads, slots, size, seed=seed)
    assert_close(kernel_step(*inputs, backend=kernel), xla_step(*inputs))


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_products_accumulate_in_float32(kernel):
    fused, angles, mask, cache, starts = arrays(2, 5, 1, 4, 128, 64, jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (fused, cache))
    exact, _ = xla_step(wide[0], angles, mask, wide[1], starts)
    out, _ = kernel_step(fused, angles, mask, cache, starts, backend=kernel)
    assert np.linalg.norm(out - exact) < 1e-2 * np.linalg.norm(exact)


@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_after_the_last_visible_slot_are_not_read(kernel):
    fused, angles, _, cache, _ = arrays(2, 3, 1, 2, 512, 16)
    starts = jnp.array([37, 253])
    mask = jnp.arange(512) <= starts[:, None, None] + jnp.arange(3)[:, None]
    beyond = jnp.arange(512) >= -(-(starts + 3) // 128 * 128)[:, None]
    poison = jnp.where(beyond[:, None, :, None], jnp.nan, 0.0)
    poisoned = tuple(x + poison for x in cache)
    out, _ = kernel_step(fused, angles, mask, poisoned, starts, backend=kernel)
    expected, _ = xla_step(fused, angles, mask, cache, starts)
    assert_close(out, expected)
    # The control: plain attention reads all blocks.
    assert np.isnan(xla_step(fused, angles, mask, poisoned, starts)[0]).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_slots_to_be_overwritten_are_not_read(kernel):
    """Other threads may be writing these slots, which hold arbitrary values before."""
    fused, angles, _, cache, starts = arrays(2, 3, 1, 2, 256, 16)
    slot = jnp.arange(256) - starts[:, None]
    mask = slot[:, None] <= jnp.arange(3)[:, None]
    window = (slot >= 0) & (slot < 3)
    poison = jnp.where(window[:, None, :, None], jnp.nan, 0.0)
    poisoned = tuple(x + poison for x in cache)
    inputs = fused, angles, mask, poisoned, starts
    assert_close(kernel_step(*inputs, backend=kernel), xla_step(*inputs))
    assert np.isnan(poisoned[1]).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 64])
@pytest.mark.parametrize("platform", DEVICES)
def test_programs_contain_the_kernel_of_their_platform(platform, dtype, length):
    """Shapes of GPT-XL; only compilation is tested here."""
    shapes = jax.eval_shape(partial(arrays, 2, length, 1, 20, 640, 64, dtype))
    text = lowered(kernel_step, platform, *shapes)
    assert {p: text.count(name) for p, name in LAUNCHES.items()} == {
        p: int(p == platform) for p in LAUNCHES
    }


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "shape, supported",
    [
        ((1, 1, 1, 2, 128, 100), ["tpu"]),  # heads of 100, as in GPT-3B
        ((1, 1, 3, 2, 128, 64), ["tpu"]),  # three queries per key/value head
        ((1, 1, 1, 2, 40, 64), ["cuda"]),  # a cache of 40 slots
        ((1, 128, 4, 2, 128, 128), ["tpu"]),  # too many queries for a GPU
    ],
)
def test_unsupported_shapes_fall_back_to_xla(shape, supported):
    shapes = jax.eval_shape(partial(arrays, *shape))
    for platform, name in LAUNCHES.items():
        text = lowered(kernel_step, platform, *shapes)
        assert text.count(name) == (platform in supported), platform
    inputs = arrays(*shape)
    assert_close(kernel_step(*inputs), xla_step(*inputs))


def test_heads_per_tpu_program():
    assert _heads_per_program(20, 16, 64, 128) == 20
    assert _heads_per_program(32, 128, 64, 128) == 8
    assert _heads_per_program(3, 2048, 128, 128) == 1
    inputs = arrays(2, 40, 4, 6, 128, 32)
    assert _heads_per_program(6, 4 * 48, 32, 128) == 6
    assert_close(kernel_step(*inputs, backend=KERNELS[1]), xla_step(*inputs))


@pytest.mark.variants(1)
@pytest.mark.parametrize("length, groups", [(1, 1), (1, 2), (3, 1)])
def test_tpu_variants_match(length, groups):
    """A TPU duplicates a single query, and writes sequences one after another."""
    fused, angles, mask, cache, starts = arrays(3, length, groups, 2, 16, 8)
    q, k, v = split_and_rotate(fused, angles)
    assert_close(attention._attend_duplicated(q, *cache, mask)[:, :1],
                 attend(q, *cache, mask)[:, :1])  # fmt: skip
    arguments = cache[0], k, starts
    np.testing.assert_array_equal(
        spec_cache._write_unrolled(*arguments), spec_cache._write_batched(*arguments)
    )
    shapes = jax.eval_shape(lambda: (fused, angles, mask, cache, starts))
    texts = {
        "cpu": jax.jit(xla_step).lower(*shapes).as_text(),
        "tpu": lowered(xla_step, "tpu", *shapes),
    }
    assert "scatter" in texts["cpu"] and "scatter" not in texts["tpu"]
    if (length, groups) == (1, 1):
        assert "3x2x2x8xf32" in texts["tpu"] and "3x2x2x8xf32" not in texts["cpu"]


@pytest.mark.parametrize(
    "size, layers", [(8, 3), pytest.param(64, 36, marks=pytest.mark.slow)]
)
def test_one_kernel_commits_a_path_in_all_layers(size, layers):
    """Overlapping slots, and more layers than fit into one launch."""
    keys = iter(jax.random.split(jax.random.key(0), 2 * layers))
    shape = 2, 2, 40, size
    cache = tuple(
        (jax.random.normal(next(keys), shape), jax.random.normal(next(keys), shape))
        for _ in range(layers)
    )
    lengths = jnp.array([5, 17])
    path = jnp.array([[0, 1, 3, 4, 9, 11, 12, 15, 19], [0, 2, 3, 5, 6, 7, 8, 20, 22]])
    inputs = cache, lengths, 23, path
    moved = kernel_gather_path(*inputs, interpret=True)
    jax.tree.map(np.testing.assert_array_equal, moved, gather_path(*inputs))
    assert not np.array_equal(moved[0][0], cache[0][0])
    move = partial(kernel_gather_path, nodes=23)
    text = lowered(lambda c, at, p: move(c, at, path=p), "cuda", cache, lengths, path)
    assert text.count(LAUNCHES["cuda"]) == (3 if layers > 32 else 1)
    assert "scatter" not in text


@pytest.mark.parametrize("kernel", KERNELS)
def test_fully_masked_queries_are_finite(kernel):
    fused, angles, mask, cache, starts = arrays(2, 3, 1, 2, 128, 8)
    partly_masked = mask.at[1].set(False)
    out, _ = kernel_step(fused, angles, partly_masked, cache, starts, backend=kernel)
    assert np.isfinite(out).all()
    expected, _ = xla_step(fused, angles, mask, cache, starts)
    assert_close(out[0], expected[0])


@pytest.mark.slow
def test_a_model_generates_the_same_tokens_with_kernels():
    """Plain and speculative decoding, with caches of a multiple of a block."""
    config = TransformerConfig(
        vocab_size=32, layers=2, width=32, heads=2, grid=4, classes=3
    )
    model = Transformer(config)
    params = model.init(jax.random.key(0))
    params["head"] = jax.random.normal(jax.random.key(1), params["head"].shape)
    table = {"table": jax.random.normal(jax.random.key(2), (2, 32, 32))}
    sampling, keys = Sampling.create(cfg_scale=2.0), batch_keys(0, 3)

    def tokens(attention, drafter=None, tree="chain-0"):
        target = Transformer(config, attention).as_target()
        shape = (
            {} if drafter is None else {"drafter": drafter, "tree": Tree.named(tree)}
        )
        engine = Engine(target, 16, order=("temperature",), **shape)
        return jax.jit(engine.generate)(
            Variables(params, table), jnp.arange(3), sampling=sampling, keys=keys
        ).tokens

    plain = tokens("xla")
    np.testing.assert_array_equal(tokens("pallas"), plain)
    fast = tokens("pallas", TableDrafter(), "naive_extend_57")
    np.testing.assert_array_equal(fast, plain)


UNSUPPORTED = {
    "odd cache on a TPU": (
        lambda: kernel_step(*arrays(1, 1, 1, 1, 40, 8), backend="mosaic interpreted"),
        "a multiple of 128",
    ),
    "odd heads on a GPU": (
        lambda: kernel_step(*arrays(1, 1, 1, 1, 32, 100), backend="triton"),
        "needs powers of two",
    ),
    "odd groups on a GPU": (
        lambda: kernel_step(*arrays(1, 1, 3, 2, 32, 8), backend="triton"),
        "3 of them per key/value head",
    ),
    "unknown implementation": (
        lambda: Transformer(TransformerConfig(), "flash"),
        "choose one of xla, pallas, cudnn",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_inputs_are_refused(case):
    run, message = UNSUPPORTED[case]
    with pytest.raises(ConfigError, match=message):
        run()


def test_cudnn_needs_a_gpu():
    fused, angles, mask, cache, _ = arrays(1, 1, 1, 1, 32, 8)
    with pytest.raises(ConfigError, match="on NVIDIA GPUs"):
        cudnn_attend(split_and_rotate(fused, angles)[0], *cache, mask)


@pytest.mark.accelerator
@pytest.mark.parametrize("implementation", ["pallas", "cudnn"])
def test_accelerator_attention_matches_xla(implementation):
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        pytest.skip("cuDNN needs an NVIDIA GPU")
    fused, angles, mask, cache, starts = arrays(2, 26, 1, 20, 640, 64, jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (fused, cache))
    expected, _ = xla_step(wide[0], angles, mask, wide[1], starts)
    out, written = OVER_CACHE[implementation](fused, angles, mask, cache, starts)
    assert np.linalg.norm(out - expected) < 1e-2 * np.linalg.norm(expected)
    _, xla_cache = xla_step(fused, angles, mask, cache, starts)
    assert_close(written, xla_cache, atol=0.02)


@pytest.mark.accelerator
def test_accelerator_commit_matches_xla():
    keys = jax.random.split(jax.random.key(0), 72)
    buffers = [jax.random.normal(key, (2, 20, 640, 64), jnp.bfloat16) for key in keys]
    layers = tuple(zip(buffers[::2], buffers[1::2], strict=True))
    path = jnp.array([[0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 3, 5, 6, 7, 25, 25]])
    inputs = layers, jnp.array([5, 301]), 26, path
    moved = jax.jit(kernel_gather_path, static_argnums=2)(*inputs)
    jax.tree.map(np.testing.assert_array_equal, moved, gather_path(*inputs))
