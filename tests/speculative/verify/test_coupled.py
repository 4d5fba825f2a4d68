"""`Coupled` against a walk in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled
from tests.speculative.trees.random_trees import trees
from tests.speculative.verify.noises import coupled_noise

VERIFY = jax.jit(Coupled().verify, static_argnums=2)


def walk(tree, tokens, valid, choice):
    """Deepest path of children that equal the sample of the target."""
    reached = [[0]]
    for path in reached:
        for n in range(1, tree.size):
            if tree.parents[n] == path[-1] and valid[n]:
                if tokens[n] == choice[path[-1]]:
                    reached.append([*path, n])
    return min(reached, key=lambda path: (-len(path), path[-1]))


@settings(max_examples=25)
@given(trees(), st.integers(0, 2**31 - 1))
def test_coupled_equals_a_walk_down_the_tree(tree, seed):
    rng = np.random.default_rng(seed)
    rows, vocab = 16, 3
    log_p = rng.normal(size=(rows, tree.size, vocab)).astype(np.float32)
    noise = rng.gumbel(size=(rows, tree.depth + 1, vocab)).astype(np.float32)
    tokens = rng.integers(vocab, size=(rows, tree.size)).astype(np.int32)
    valid = rng.random((rows, tree.size)) < 0.8
    draft = Draft(jnp.asarray(tokens), jnp.asarray(valid))
    given = coupled_noise(noise, tree.size)
    verdict = VERIFY(jnp.asarray(log_p), draft, tree, given)
    for b in range(rows):
        choice = (log_p[b] + noise[b, tree.depths]).argmax(-1)
        path = walk(tree, tokens[b], valid[b], choice)
        accepted = int(verdict.accepted[b])
        assert verdict.path[b, : accepted + 1].tolist() == path
        assert int(verdict.next_token[b]) == choice[path[-1]]


def test_margin_is_the_lead_of_the_choice():
    scores = jnp.array([[[1.0, 4.0, 3.5], [0.0, 0.0, -jnp.inf]]])
    draft = Draft(jnp.array([[0, 1]]), jnp.ones((1, 2), bool))
    verdict = Coupled().verify(
        scores, draft, Tree.chain(1), coupled_noise(jnp.zeros((1, 2, 3)), 2)
    )
    assert verdict.accepted.tolist() == [1]
    assert verdict.next_token.tolist() == [0]  # the lowest id on ties
    np.testing.assert_allclose(verdict.margin, [[0.5, 0.0]])


def test_coupled_is_usable_inside_jit_and_vmap():
    verifier = Coupled()
    assert hash(verifier) == hash(Coupled()) and verifier.lossless
    tree = Tree.chain(2)
    key = jax.random.key(0)
    log_p = jax.random.normal(key, (5, 1, 3, 7))
    tokens = jax.random.randint(key, (5, 1, 3), 0, 7)
    draft = Draft(tokens, jnp.ones_like(tokens, bool))
    noise = jax.vmap(lambda x: coupled_noise(x, 3))(jnp.zeros((5, 1, 3, 7)))
    apart = jax.jit(jax.vmap(lambda p, d, g: verifier.verify(p, d, tree, g)))
    verdict = apart(log_p, draft, noise)
    together = verifier.verify(
        log_p[:, 0],
        Draft(tokens[:, 0], draft.valid[:, 0]),
        tree,
        jax.tree.map(lambda x: x[:, 0], noise),
    )
    np.testing.assert_array_equal(verdict.path[:, 0], together.path)
