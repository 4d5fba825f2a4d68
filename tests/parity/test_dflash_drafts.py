# ruff: noqa: E402
"""Drafts over several rounds against the PyTorch DFlash."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.sampling import Sampling

torch = pytest.importorskip("torch")

from jaxspec.core.noise import batch_keys
from jaxspec.speculative.draft import DraftContext, InitContext, RoundResult
from jaxspec.speculative.trees.tree import Tree
from tests.parity import sampling_twin
from tests.parity.comparing import as_jax
from tests.parity.dflash_pairs import BLOCK, ROWS, VOCAB, WIDTH, make_pair

pytestmark = pytest.mark.parity

SCALE = 2.0
CHAIN = Tree.chain(BLOCK)
# Tokens that each sequence commits per round, with the newest (the next anchor).
COMMITTED = torch.tensor([[1, 4, 2], [3, 1, 5], [2, 2, 1]])
LENGTH = 1 + int(COMMITTED.sum(0).max())


@pytest.fixture(scope="module", params=[False, True], ids=["bidirectional", "causal"])
def pair(request):
    return make_pair(causal=request.param)


def make_features(seed=1):
    """Target features of each position, conditional branches first."""
    torch.manual_seed(seed)
    return torch.randn(2 * ROWS, LENGTH, 2 * WIDTH)


def reference_draft(pair, row, features, anchor):
    """Greedy guided draft of one sequence, left to right, from the whole context."""
    conditional, unconditional = (
        hidden_states(pair, branch[None], anchor)
        for branch in (features[row], features[ROWS + row])
    )
    draft = [anchor]
    for i in range(BLOCK):
        scores = sampling_twin.guide(
            *(
                pair.torch_model.scores(hidden[i], pair.head, draft[-1])
                for hidden in (conditional, unconditional)
            ),
            SCALE,
        )
        draft.append(scores.argmax())
    return torch.stack(draft)


def hidden_states(pair, context, anchor):
    turns = pair.turns(torch.arange(context.shape[1] + BLOCK)[None])
    causal = pair.drafter.config.causal
    return pair.torch_model(context, pair.block(anchor[None]), turns, causal)[0]


def next_features(features, lengths, counts):
    """The next `counts` positions of each sequence, followed by garbage."""
    size = BLOCK + 1
    chunk = torch.full((len(features), size, features.shape[2]), 9.0)
    for row, (start, count) in enumerate(zip(lengths, counts, strict=True)):
        chunk[row, :count] = features[row, start : start + count]
    return chunk


def round_result(chunk, counts):
    """Result of a round that committed `counts` positions with these features."""
    batch, length = chunk.shape[:2]
    path = jnp.broadcast_to(jnp.arange(length), (batch, length))
    count = as_jax(counts)
    features = as_jax(chunk)
    return RoundResult(path, count, path, count - 1, features, None, None, None)


def test_greedy_drafts_agree_round_after_round(pair):
    features = make_features()
    propose = jax.jit(pair.drafter.propose)
    ones = jnp.ones(2 * ROWS, jnp.int32)
    start = InitContext(None, as_jax(features[:, :1]), ones, CHAIN, ROWS, LENGTH)
    state = jax.jit(pair.drafter.init)(pair.params, start)
    lengths = torch.ones(ROWS, dtype=torch.long)
    sampling = Sampling.create(ROWS, temperature=0.0, cfg_scale=SCALE)
    noise = jnp.zeros((ROWS, BLOCK + 1, VOCAB))
    drafts = []
    for counts in COMMITTED:
        chunk = next_features(features, lengths.repeat(2), counts.repeat(2))
        state = pair.drafter.observe(pair.params, state, round_result(chunk, counts))
        lengths = lengths + counts
        anchors = torch.randint(VOCAB, (ROWS,))
        ctx = DraftContext(
            as_jax(anchors),
            as_jax(anchors)[:, None],
            as_jax(lengths),
            as_jax(lengths - 1),
            noise,
            batch_keys(0, ROWS),
            sampling,
            CHAIN,
            order=("temperature",),
        )
        draft, state = propose(pair.params, state, ctx)
        reference = [
            reference_draft(pair, row, features[:, : lengths[row]], anchors[row])
            for row in range(ROWS)
        ]
        np.testing.assert_array_equal(
            np.asarray(draft.tokens), torch.stack(reference).numpy()
        )
        drafts.append(reference)
    assert len({tuple(x.tolist()) for round_ in drafts for x in round_}) > ROWS
