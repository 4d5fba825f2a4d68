# ruff: noqa: E402
"""Decoding with a KV cache against the PyTorch LlamaGen, which has none."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.core import kv_cache as cache_lib
from jaxspec.core.kv_cache import init_cache, tree_mask
from jaxspec.speculative.trees.tree import Tree
from tests.parity import llamagen_pairs
from tests.parity.comparing import as_jax, assert_close
from tests.parity.llamagen_pairs import ROWS, make_pair, make_prompt, make_tokens

pytestmark = pytest.mark.parity

commit_path = jax.jit(cache_lib.commit_path, static_argnames="nodes")

NULL = torch.tensor([True, False, False])
TREE = Tree.from_paths([(0, 0, 0), (0, 1), (1, 0)])
TAPS = (0, 1)
ROOM = 16


@pytest.fixture(scope="module", params=["class", "caption"])
def pair(request):
    return make_pair(request.param, width=32, heads=4, kv_heads=2)


def start(pair, prompt):
    """Reads the prompt into a cache with slots for more tokens."""
    c = pair.model.config
    capacity = c.prefix_length + ROOM
    cache = init_cache(
        c.layers, ROWS, c.num_kv_heads, capacity, c.head_size, jnp.float32
    )
    null = jnp.asarray(NULL.numpy())
    return llamagen_pairs.read_prompt(
        pair.model, pair.params, prompt.inputs, null, cache, TAPS
    )


def extend(pair, cache, tokens, ancestors, depths):
    """Reads the nodes of a draft tree after the committed tokens."""
    positions = cache.lengths[:, None] + depths
    mask = tree_mask(cache, ancestors)
    return llamagen_pairs.extend(
        pair.model, pair.params, cache, as_jax(tokens), positions, mask, TAPS
    )


def torch_scores(pair, prompt, tokens):
    return pair.torch_model(prompt.prefix(NULL), tokens, prompt.real)


def test_the_prompt_predicts_the_first_token(pair):
    prompt = make_prompt(pair)
    logits, _, cache = start(pair, prompt)
    assert_close(logits[:, -1], torch_scores(pair, prompt, make_tokens(0))[:, -1])
    assert cache.lengths.tolist() == [pair.model.config.prefix_length] * ROWS


@pytest.mark.parametrize("chunks", [(1,) * ROOM, (7, 1, 1, 7)], ids=["1", "uneven"])
def test_logits_and_features_do_not_depend_on_the_chunks(pair, chunks):
    prompt, tokens = make_prompt(pair), make_tokens(ROOM)
    logits, features, cache = start(pair, prompt)
    scores, tapped = [logits[:, -1:]], [features[:, -1:]]
    for chunk in tokens.split(chunks, dim=1):
        size = chunk.shape[1]
        causal = np.tril(np.ones((size, size), bool))
        logits, features, cache = extend(pair, cache, chunk, causal, np.arange(size))
        cache = replace(cache, lengths=cache.lengths + size)
        scores.append(logits)
        tapped.append(features)
    first = pair.model.config.prefix_length - 1
    reference = torch_scores(pair, prompt, tokens)
    outputs = pair.torch_model.layer_outputs(prompt.prefix(NULL), tokens, prompt.real)
    assert_close(jnp.concatenate(scores, 1), reference[:, first:])
    assert_close(jnp.concatenate(tapped, 1), torch.cat(outputs, -1)[:, first:])


def test_each_node_of_a_tree_is_scored_as_the_end_of_its_own_path(pair):
    prompt, nodes = make_prompt(pair), make_tokens(TREE.size)
    _, _, cache = start(pair, prompt)
    logits, _, _ = extend(pair, cache, nodes, TREE.ancestors, TREE.depths)
    for n in range(TREE.size):
        path = nodes[:, np.flatnonzero(TREE.ancestors[n])]
        assert_close(logits[:, n], torch_scores(pair, prompt, path)[:, -1])


def test_sequences_continue_from_the_paths_that_they_accepted(pair):
    prompt, nodes = make_prompt(pair), make_tokens(TREE.size)
    _, _, cache = start(pair, prompt)
    _, _, cache = extend(pair, cache, nodes, TREE.ancestors, TREE.depths)
    ends = [TREE.levels[3][0], 0, TREE.levels[2][-1]]
    paths, counts = jnp.asarray(TREE.paths[ends]), jnp.asarray(TREE.depths[ends] + 1)
    cache = commit_path(cache, TREE.size, paths, counts)
    after = make_tokens(1, seed=3)
    logits, _, _ = extend(pair, cache, after, np.ones((1, 1), bool), np.zeros(1, int))
    for row, end in enumerate(ends):
        path = np.flatnonzero(TREE.ancestors[end])
        sequence = torch.cat([nodes[:, path], after], dim=1)
        assert_close(logits[row, 0], torch_scores(pair, prompt, sequence)[row, -1])
