# ruff: noqa: E402
"""Released DFlash and DSpark drafters: keys, conventions and drafts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.sampling import Sampling

torch = pytest.importorskip("torch")

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig
from jaxspec.core.noise import batch_keys
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import DraftContext, InitContext
from jaxspec.speculative.trees.tree import Tree
from tests.parity.comparing import as_jax
from tests.parity.converting import converted
from tests.parity.dflash_twin import TorchDFlash
from tests.parity.llamagen_twin import sequence_angles
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

VOCAB, WIDTH, HEADS, BLOCK, MASK, CONTEXT, ROWS = 40, 32, 4, 5, 37, 7, 2
TARGET = TransformerConfig(
    vocab_size=VOCAB, layers=6, width=WIDTH, heads=4, rope="sequence", condition="none"
)
CONFIG_JSON = {
    "block_size": BLOCK,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 2,
    "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [1, 3]},
}


def target():
    torch.manual_seed(5)
    return {
        "embedding": {"embedding": as_jax(0.02 * torch.randn(VOCAB, WIDTH))},
        "head": as_jax(torch.randn(WIDTH, VOCAB)),
    }


def make(spark):
    torch_model = TorchDFlash(
        vocab=VOCAB,
        feature_layers=2,
        layers=2,
        width=WIDTH,
        heads=HEADS,
        kv_heads=2,
        hidden=48,
        eps=1e-6,
        rank=6,
    )
    torch_model = randomized(torch_model, seed=0)
    state = torch_model.state_dict()
    if not spark:
        state = {k: x for k, x in state.items() if "markov" not in k}
    else:
        state["confidence_head.proj.weight"] = torch.randn(1, WIDTH + 6)
        state["confidence_head.proj.bias"] = torch.randn(1)
    shared = target()
    checkpoint = converted(
        state, config=CONFIG_JSON, target=Checkpoint("prior", TARGET, shared)
    )
    return (
        torch_model,
        checkpoint.model,
        checkpoint.model.with_target_params(checkpoint.params, shared),
        shared,
    )


@pytest.mark.parametrize("spark", [False, True], ids=["DFlash", "DSpark"])
def test_released_drafters_draft_as_in_their_code(spark):
    """A DFlash query predicts the token at its position, a DSpark query the next."""
    torch_model, drafter, params, shared = make(spark)
    assert drafter.feature_layers == (1, 3) and not drafter.config.causal
    assert drafter.max_depth == (BLOCK if spark else BLOCK - 1)
    assert drafter.config.confidence == spark
    table = torch.tensor(np.asarray(shared["embedding"]["embedding"]))
    head = torch.tensor(np.asarray(shared["head"]))
    features = torch.randn(ROWS, CONTEXT, 2 * WIDTH)
    anchors = torch.tensor([3, 11])

    block = torch.full((ROWS, BLOCK), MASK)
    block[:, 0] = anchors
    positions = torch.arange(CONTEXT + BLOCK).expand(ROWS, -1)
    turns = sequence_angles(positions, WIDTH // HEADS)
    hidden = torch_model(features, table[block], turns, False)
    rows = hidden if spark else hidden[:, 1:]
    drafts = []
    for row in range(ROWS):
        path = [anchors[row]]
        for h in rows[row]:
            scores = h @ head
            if spark:
                scores = scores + torch_model.markov_head(path[-1])
            path.append(scores.argmax())
        drafts.append(torch.stack(path))

    tree = Tree.chain(drafter.max_depth)
    lengths = jnp.full(ROWS, CONTEXT, jnp.int32)
    start = InitContext(None, as_jax(features), lengths, tree, ROWS, 20)
    state = drafter.init(params, start)
    ctx = DraftContext(
        as_jax(anchors),
        as_jax(anchors)[:, None],
        lengths,
        lengths,
        jnp.zeros((ROWS, tree.depth + 1, VOCAB)),
        batch_keys(0, ROWS),
        Sampling.create(ROWS, temperature=0.0),
        tree,
        order=("temperature",),
    )
    draft, _ = jax.jit(drafter.propose)(params, state, ctx)
    np.testing.assert_array_equal(np.asarray(draft.tokens), torch.stack(drafts).numpy())
    assert len({tuple(d.tolist()) for d in drafts}) == ROWS


@pytest.mark.parametrize(
    "config_json, message",
    [
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding window"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"rope_theta": 1e6}, "other rotary frequencies"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "other rotary frequencies",
        ),
    ],
    ids=str,
)
def test_unknown_conventions_are_refused(config_json, message):
    torch_model, *_ = make(False)
    state = {k: x for k, x in torch_model.state_dict().items() if "markov" not in k}
    with pytest.raises(ConfigError, match=message):
        shared = Checkpoint("prior", TARGET, target())
        converted(state, config={**CONFIG_JSON, **config_json}, target=shared)


def test_a_mask_that_the_target_does_not_have_is_refused():
    torch_model, *_ = make(False)
    state = {k: x for k, x in torch_model.state_dict().items() if "markov" not in k}
    config_json = {
        **CONFIG_JSON,
        "dflash_config": {**CONFIG_JSON["dflash_config"], "mask_token_id": 151669},
    }
    with pytest.raises(ConfigError, match="151669 is not one of the target's 40"):
        converted(
            state, config=config_json, target=Checkpoint("prior", TARGET, target())
        )
