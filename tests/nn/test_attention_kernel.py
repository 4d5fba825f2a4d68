"""The Pallas kernel attends as plain XLA does, and reads only what is filled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.nn.attention import ATTENTION, attend, cudnn_attend
from jaxspec.nn.attention_kernel import kernel_attend
from jaxspec.spec.loop import generate
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import row_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine
from jaxspec.testing.table_drafter import TableDrafter


def arrays(rows, length, heads, kv_heads, slots, size, dtype="float32", seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    q = jax.random.normal(keys[0], (rows, length, heads, size), dtype)
    k = jax.random.normal(keys[1], (rows, kv_heads, slots, size), dtype)
    v = jax.random.normal(keys[2], (rows, kv_heads, slots, size), dtype)
    mask = jax.random.bernoulli(keys[3], 0.3, (rows, length, slots))
    return q, k, v, mask.at[:, :, 0].set(True)


@settings(max_examples=6)
@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 40),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2)]),
    slots=st.sampled_from([32, 96, 128, 256]),
    size=st.sampled_from([8, 32, 100]),
    seed=st.integers(0, 100),
)
def test_any_mask_and_any_heads_give_what_xla_gives(
    rows, length, heads, slots, size, seed
):
    given = arrays(rows, length, *heads, slots, size, seed=seed)
    np.testing.assert_allclose(kernel_attend(*given), attend(*given), atol=2e-6)


def test_short_floats_are_added_up_in_long_ones():
    given = arrays(2, 5, 4, 4, 128, 64, jnp.bfloat16)
    exact = attend(*(x.astype(jnp.float32) for x in given[:3]), given[3])
    out = kernel_attend(*given).astype(jnp.float32)
    assert np.linalg.norm(out - exact) < 1e-2 * np.linalg.norm(exact)


def test_blocks_behind_the_last_visible_slot_are_not_read():
    q, k, v, _ = arrays(2, 3, 2, 2, 512, 16)
    reach = jnp.array([40, 256])
    mask = jnp.arange(512) < reach[:, None, None] - jnp.array([2, 1, 0])[:, None]
    beyond = jnp.arange(512) >= -(-reach // 128 * 128)[:, None]
    poison = jnp.where(beyond[:, None, :, None], jnp.nan, 0.0)
    out = kernel_attend(q, k + poison, v + poison, mask)
    np.testing.assert_allclose(out, attend(q, k, v, mask), atol=2e-6)
    # The control: plain attention reads everything.
    assert np.isnan(attend(q, k + poison, v + poison, mask)).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 64])
def test_it_lowers_for_gpus_and_tpus(dtype, length):
    """GPT-XL's shapes; whether it runs there, and how fast, an accelerator must say."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.eval_shape(partial(arrays, 2, length, 20, 20, 640, 64, dtype)),
    )
    device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    for backend, platform, name in (
        ("triton", "cuda", "__gpu$xla.gpu.triton"),
        ("mosaic", "tpu", "tpu_custom_call"),
    ):
        function = jax.jit(partial(kernel_attend, backend=backend))
        precise = jax.default_matmul_precision("highest")  # as inside the engine
        with jax.sharding.use_abstract_mesh(mesh), precise:
            lowered = function.trace(*shapes).lower(lowering_platforms=(platform,))
        assert lowered.as_text().count(name) == 1


def test_rows_that_see_nothing_are_finite():
    q, k, v, mask = arrays(2, 3, 2, 2, 64, 8)
    out = kernel_attend(q, k, v, mask.at[1].set(False))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[0], attend(q, k, v, mask)[0], atol=2e-6)


def test_a_model_draws_the_same_tokens_with_it():
    """Its caches hold whole blocks; speculative and plain decoding agree as ever."""
    config = TransformerConfig(
        vocab_size=32, layers=2, width=32, heads=2, grid=4, classes=3
    )
    model = Transformer(config)
    params = model.init(jax.random.key(0))
    params["head"] = jax.random.normal(jax.random.key(1), params["head"].shape)
    table = {"table": jax.random.normal(jax.random.key(2), (2, 32, 32))}
    given = jnp.arange(3), make_sampling(3, guidance=2.0), row_keys(0, 3)

    def tokens(attention, drafter=None, tree="chain-0"):
        target = make_target(Transformer(config, attention))
        shape = (
            {} if drafter is None else {"drafter": drafter, "tree": named_tree(tree)}
        )
        engine = Engine(target, 16, order=("temperature",), **shape)
        return jax.jit(partial(generate, engine))(params, table, *given).tokens

    plain = tokens("xla")
    np.testing.assert_array_equal(tokens("pallas"), plain)
    fast = tokens("pallas", TableDrafter(), "naive_extend_57")
    np.testing.assert_array_equal(fast, plain)


WRONG = {
    "odd cache": (
        lambda: kernel_attend(*arrays(1, 1, 1, 1, 40, 8)),
        "a multiple of 32",
    ),
    "odd heads on a GPU": (
        lambda: kernel_attend(*arrays(1, 1, 1, 1, 32, 100), backend="triton"),
        "needs powers of two",
    ),
    "odd groups on a GPU": (
        lambda: kernel_attend(*arrays(1, 1, 6, 2, 32, 8), backend="triton"),
        "3 of them a key/value head",
    ),
    "unknown way": (
        lambda: Transformer(TransformerConfig(), "flash"),
        "choose one of xla, pallas, cudnn",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_it_cannot_take_is_told(case):
    wrong, words = WRONG[case]
    with pytest.raises(ConfigError, match=words):
        wrong()


def test_cudnn_is_for_gpus():
    with pytest.raises(ConfigError, match="on NVIDIA GPUs"):
        cudnn_attend(*arrays(1, 1, 1, 1, 32, 8))


@pytest.mark.accelerator
@pytest.mark.parametrize("way", ["pallas", "cudnn"])
def test_accelerators_attend_alike(way):
    given = arrays(2, 26, 20, 20, 640, 64, jnp.bfloat16)
    expected = attend(*(x.astype(jnp.float32) for x in given[:3]), given[3])
    out = ATTENTION[way](*given).astype(jnp.float32)
    assert np.linalg.norm(out - expected) < 1e-2 * np.linalg.norm(expected)
