"""KV caches: writes, compaction and masks."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.core.kv_cache import KVCache, commit_path, tree_mask, write
from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.tree import Tree


def numbered_cache(rows=3, slots=14, lengths=(2, 5, 7)):
    """Cache in which every entry encodes its sequence and slot."""
    value = 100.0 * jnp.arange(rows)[:, None] + jnp.arange(slots)
    buffer = jnp.broadcast_to(value[:, None, :, None], (rows, 2, slots, 4))
    visible = jnp.ones((rows, slots), bool)
    return KVCache(((buffer, buffer + 0.5),), jnp.array(lengths), visible)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_compaction_keeps_the_path_and_what_was_committed(leaves):
    tree = Tree.from_paths([(0, 0), (1,), (2,)])
    cache = numbered_cache()
    path = tree.paths[np.array(leaves)]
    counts = tree.depths[np.array(leaves)] + 1
    after = commit_path(cache, tree.size, jnp.asarray(path), jnp.asarray(counts))
    for row, start in enumerate([2, 5, 7]):
        expected = [100 * row + s for s in range(start)]
        expected += [100 * row + start + n for n in path[row][: counts[row]]]
        for buffer, shift in zip(after.layers[0], (0.0, 0.5), strict=True):
            kept = np.asarray(buffer[row, 1, : len(expected), 3])
            np.testing.assert_array_equal(kept, np.array(expected) + shift)
        assert after.lengths[row] == len(expected)


def test_each_sequence_writes_at_its_own_slots():
    cache = numbered_cache()
    new = -jnp.ones((3, 2, 3, 4))
    out = write(cache.layers[0][0], new, cache.lengths)
    for row, start in enumerate([2, 5, 7]):
        changed = np.flatnonzero(np.asarray(out[row, 0, :, 0]) < 0)
        assert changed.tolist() == [start, start + 1, start + 2]


def test_floats_are_rounded_to_the_dtype_of_the_cache_and_integers_are_refused():
    [(k, _)], lengths = numbered_cache().layers, jnp.array([2, 5, 7])
    new = jnp.full((3, 2, 1, 4), 1 + 2**-10)
    out = write(k.astype(jnp.bfloat16), new, lengths)
    assert out.dtype == jnp.bfloat16 and float(out[1, 0, 5, 0]) == 1
    with pytest.raises(ConfigError, match="what is written to it is int32"):
        write(k, new.astype(jnp.int32), lengths)
    with pytest.raises(ConfigError, match="the cache is int8"):
        write(k.astype(jnp.int8), new, lengths)


def test_a_node_attends_to_the_past_and_its_ancestors_only():
    tree = Tree.named("0,1,00,01")
    cache = numbered_cache()
    hidden = cache.visible.at[1, 0].set(False)
    cache = KVCache(cache.layers, cache.lengths, hidden)
    mask = np.asarray(tree_mask(cache, jnp.asarray(tree.ancestors)))
    for row, start in enumerate([2, 5, 7]):
        for node in range(tree.size):
            past = {s for s in range(start) if (row, s) != (1, 0)}
            own = {start + m for m in np.flatnonzero(tree.ancestors[node])}
            assert set(np.flatnonzero(mask[row, node])) == past | own
