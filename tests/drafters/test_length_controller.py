"""Length controllers against the formula of DiffuSpec."""

from math import floor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafters.combine.adaptive import LengthController
from jaxspec.speculative.draft import Draft, RoundResult
from jaxspec.speculative.trees.tree import Tree
from tests.drafters.policies import draft_context


def diffuspec(history, least, most, step, decay):
    """Draft lengths of one sequence by the paper's formula, the first included."""
    length, generated, accepted = most, 0.0, 0.0
    lengths = [length]
    for end, hit in history:  # drafted tokens before an end token; accepted tokens
        drafted = min(end, length)
        generated = decay * generated + (1 - decay) * drafted
        accepted = decay * accepted + (1 - decay) * min(hit, drafted)
        length = floor(generated) + (step if accepted >= generated else 0)
        length = min(max(length, least), most)
        lengths.append(length)
    return lengths


@pytest.mark.parametrize(
    "controller",
    [
        LengthController(end_token=3),
        LengthController(),
        LengthController(2, 12, 3, decay=0.25, end_token=3),
        LengthController(1, 30, 4, decay=0.0, end_token=3),
    ],
    ids=str,
)
def test_the_length_controller_follows_its_paper(controller):
    """Made-up histories of few rounds, so that float32 holds the averages exactly."""
    rows, rounds, tree = 64, 9, Tree.chain(30)
    rng = np.random.default_rng(0)
    ends = rng.integers(0, 60, size=(rows, rounds))
    ends = np.where(ends < tree.depth, ends, tree.depth)
    greedy = rng.random((rows, 1)) < rng.random((rows, rounds))  # all of it accepted
    hits = np.where(greedy, tree.depth, rng.integers(0, 31, size=(rows, rounds)))
    live = rng.random((rows, rounds)) < 0.9  # other rounds are not counted
    no_end = controller.end_token is None
    c, state = controller, controller.init(rows)
    keep, observe = jax.jit(controller.keep), jax.jit(controller.observe)
    ctx = draft_context(rows, tree)
    got = [state.length]
    for t in range(rounds):
        place = np.arange(tree.size) - 1
        tokens = np.where(
            place == ends[:, [t]], 3, rng.integers(3, size=(1, tree.size))
        )
        tokens = np.where(place > ends[:, [t]], rng.integers(4, size=31), tokens)
        tokens[:, 0] = 3  # the root is no drafted token
        draft = Draft(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
        kept, state = keep(state, draft, ctx)
        np.testing.assert_array_equal(kept.sum(axis=1) - 1, got[-1])  # prefixes
        assert not (np.diff(kept.astype(int), axis=1) > 0).any()
        drafted = np.minimum(got[-1], tree.depth if no_end else ends[:, t])
        accepted = jnp.asarray(np.minimum(hits[:, t], drafted))
        none = jnp.zeros(0)
        counts = jnp.where(live[:, t], accepted + 1, 0)
        state = observe(
            state, RoundResult(none, counts, none, accepted, none, none, None, None)
        )
        got.append(state.length)
    got = np.stack(got, axis=1)
    for b in range(rows):
        rows_ends = np.full(rounds, tree.depth) if no_end else ends[b]
        history = list(zip(rows_ends[live[b]], hits[b][live[b]], strict=True))
        expected = diffuspec(history, c.least, c.most, c.step, c.decay)
        stay = np.concatenate([[0], np.cumsum(live[b])])
        np.testing.assert_array_equal(got[b], np.array(expected)[stay])
    assert len(np.unique(got)) > 2


def test_the_length_of_a_draft_is_that_of_its_deepest_valid_node():
    """Nodes that another policy or a dynamic tree left out do not count."""
    controller = LengthController(1, 6, 2)
    valid = jnp.arange(7) <= jnp.array([[6], [4], [1], [0]])
    hole = jnp.ones((1, 7), bool).at[0, 3].set(False)  # it has no valid children
    valid = jnp.concatenate([valid, hole])
    draft = Draft(jnp.zeros(valid.shape, jnp.int32), valid)
    _, state = controller.keep(
        controller.init(5), draft, draft_context(5, Tree.chain(6))
    )
    np.testing.assert_array_equal(state.drafted, [6, 4, 1, 0, 2])


def test_in_a_tree_the_first_children_determine_where_the_text_ends():
    tree = Tree.named("0,1,00,10,000,100")
    tokens = np.zeros((3, tree.size), int)
    rank, depth = np.array(tree.ranks), tree.depths
    main = (tree.ancestors & (rank > 0)).sum(1) == 0
    tokens[0, main & (depth == 2)] = 3
    tokens[1, ~main & (depth == 1)] = 3
    draft = Draft(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    controller = LengthController(1, 3, end_token=3)
    _, state = controller.keep(controller.init(3), draft, draft_context(3, tree))
    np.testing.assert_array_equal(state.drafted, [1, 3, 3])
