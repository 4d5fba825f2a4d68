"""Block-diffusion drafters: attention, children, errors and acceptance heads."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.combine.adaptive import Adaptive, ConfidenceCutoff
from jaxspec.drafters.dflash.acceptance_head import AcceptanceHead
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import append_to
from jaxspec.drafters.dflash.training import anchored_mask
from jaxspec.drafters.tree_drafting import grow
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import DraftContext, InitContext
from jaxspec.speculative.trees.dynamic import BestFirst
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.table_drafter import table_step
from tests.drafters.tiny import BLOCK
from tests.drafters.tiny_block import TARGET, block_drafter


@pytest.mark.slow
def test_a_block_never_attends_to_its_own_or_later_features():
    drafter, own, target_params = block_drafter()
    features = jax.random.normal(jax.random.key(2), (1, 17, 64))
    anchors = jnp.array([[3, 9]])

    def outputs(features):
        network = drafter.network(own)
        contexts = network.context(features, drafter.angles(jnp.arange(17)[None]))
        h = network.block_input(jnp.ones((1, 2, 32))).reshape(1, 8, 32)
        positions = (anchors[..., None] + jnp.arange(4)).reshape(1, 8)
        joins = [append_to(past) for past in contexts]
        mask = anchored_mask(anchors, 17, drafter.config)
        return network.block(h, drafter.angles(positions), mask, joins)

    for block, anchor in enumerate([3, 9]):
        gradient = jax.grad(lambda f, b=block: outputs(f)[0, 4 * b : 4 * b + 4].sum())(
            features
        )
        read = np.flatnonzero(np.abs(np.asarray(gradient[0])).sum(-1))
        assert read.tolist() == list(range(anchor))


def test_children_are_the_best_under_the_shared_noise():
    tree = Tree.named("0,1,2,00,01,10")
    batch = 2
    noise = position_noise(batch_keys(0, batch), jnp.arange(6).reshape(2, 3), 23)
    sampling = Sampling.create(batch, temperature=[1.0, 0.5], top_k=[0, 2])
    three = jnp.array([3, 3])
    ctx = DraftContext(
        jnp.array([4, 5]),
        jnp.array([[4], [5]]),
        three,
        three,
        noise,
        batch_keys(0, batch),
        sampling,
        tree,
        order=("temperature", "top_k"),
    )
    table = jax.random.normal(jax.random.key(3), (2, 23, 23))  # by depth, token
    draft = grow(ctx, table_step(table))[0]
    for b in range(batch):
        for n in range(1, tree.size):
            parent = tree.parents[n]
            depth = tree.depths[parent]
            logits = np.asarray(table[depth, draft.tokens[b, parent]])
            logits = logits / (1.0, 0.5)[b]
            if b == 1:  # top-k of 2
                logits[logits < np.sort(logits)[-2]] = -np.inf
            ranked = np.argsort(-(logits + np.asarray(noise[b, depth])), kind="stable")
            if tree.ranks[n] < (23, 2)[b]:
                assert draft.valid[b, n] and draft.tokens[b, n] == ranked[tree.ranks[n]]
            else:
                assert not draft.valid[b, n]


def test_impossible_drafters_raise_a_clear_error():
    with pytest.raises(ConfigError, match="width 64 is not the target's 32"):
        DFlash(replace(BLOCK, width=64), TARGET)
    with pytest.raises(ConfigError, match="feature layer 3 is beyond"):
        DFlash(replace(BLOCK, feature_layers=(3,)), TARGET)
    drafter, own, target_params = block_drafter()
    params = drafter.with_target_params(own, target_params)
    one = jnp.ones(1, jnp.int32)

    def start(tree):
        drafter.init(params, InitContext(None, jnp.zeros((1, 1, 64)), one, tree, 1, 20))

    with pytest.raises(ConfigError, match="5 deep"):
        start(Tree.named("chain-5"))
    with pytest.raises(ConfigError, match="24 children"):
        drafter.check_tree(Tree.from_paths([(23,)]))


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("tree", [Tree.named("0,1,00,01,000"), BestFirst(6, 3)])
def test_an_acceptance_head_reads_the_query_and_the_token_of_each_node(tree):
    drafter, own, target_params = block_drafter()
    head = AcceptanceHead(TARGET.width, layers=1)
    stop = head.init_params(jax.random.key(7))
    drafter = replace(drafter, stop=head)
    params = drafter.with_target_params(own, target_params, stop)
    batch = 2
    features = jax.random.normal(jax.random.key(8), (2 * batch, 1, 64))
    ones = jnp.ones(2 * batch, jnp.int32)
    start = InitContext(None, features, ones, tree, batch, 20)
    state = drafter.init(params, start)
    ctx = DraftContext(
        jnp.array([4, 5]),
        jnp.array([[4], [5]]),
        jnp.ones(batch, jnp.int32),
        jnp.ones(batch, jnp.int32),
        position_noise(batch_keys(0, batch), jnp.arange(8).reshape(2, 4), 23),
        batch_keys(0, batch),
        Sampling.create(batch, cfg_scale=2.0),
        tree,
    )
    h, _ = drafter._block_outputs(params, state.cache, ctx, tree.depth)
    draft, _ = drafter.propose(params, state, ctx)
    depths = np.broadcast_to(draft.topology(tree).depths, draft.tokens.shape)
    for b, n in np.ndindex(batch, tree.size):
        if n and draft.valid[b, n]:
            token = target_params["embedding"]["embedding"][draft.tokens[b, n]]
            expected = head.confidence(stop, h[b, depths[b, n] - 1] + token)
            np.testing.assert_allclose(draft.confidence[b, n], expected, rtol=1e-5)
    short = Adaptive(drafter, ConfidenceCutoff(1.0, "head"))
    state = short.init(params, start)
    cut, _ = short.propose(params, state, ctx)
    assert (np.asarray(cut.valid) == (depths <= 1) & np.asarray(draft.valid)).all()
    with pytest.raises(ConfigError, match="width 8 is not"):
        replace(drafter, stop=AcceptanceHead(8))
