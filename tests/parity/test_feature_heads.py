# ruff: noqa: E402
"""EAGLE, LANTERN, Medusa and Hydra drafters against their twins, converted."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import RopeScaling, TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Caption, Transformer, lantern_padding_mask
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.eagle_twin import (
    Eagle1,
    Eagle3,
    Hydra,
    HydraPlusPlus,
    Medusa,
)
from tests.parity.llamagen_pairs import (
    CAPTION_LENGTH,
    CAPTION_WIDTH,
    GRID,
    make_pair,
)
from tests.parity.llamagen_twin import (
    grid_rotations,
    left_padded,
    rotate_pairs,
    sequence_angles,
)
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

VOCAB, WIDTH, HEADS, LAYERS, ROWS, LENGTH = 40, 32, 4, 8, 2, 9
TEXT = TransformerConfig(
    vocab_size=VOCAB,
    layers=LAYERS,
    width=WIDTH,
    heads=HEADS,
    rope="sequence",
    condition="none",
    norm_eps=1e-6,
)
IMAGES = TransformerConfig(
    vocab_size=VOCAB,
    layers=LAYERS,
    width=WIDTH,
    heads=HEADS,
    grid=4,
    condition="caption",
    caption_length=6,
    caption_width=10,
)
SAID = {"num_attention_heads": HEADS, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}


def target_of(config):
    """A target of which only the shared parts are there."""
    torch.manual_seed(5)
    head = torch.randn(WIDTH, VOCAB) / WIDTH**0.5
    params = {
        "embedding": {"embedding": as_jax(torch.randn(VOCAB, WIDTH))},
        "head": as_jax(head),
        "norm": {"scale": as_jax(1 + 0.2 * torch.randn(WIDTH))},
    }
    return Checkpoint("prior", config, params)


def inputs(wide=1):
    torch.manual_seed(1)
    features = torch.randn(ROWS, LENGTH, wide * WIDTH)
    return features, torch.randint(VOCAB, (ROWS, LENGTH))


def causal():
    mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    return jnp.broadcast_to(mask, (ROWS, LENGTH, LENGTH))


def normed(target, features):
    h = features / (features.square().mean(-1, keepdim=True) + target.norm_eps).sqrt()
    return h


def places():
    return jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))


def turns_of(target):
    """Text: by the feature's place. Images: LANTERN has a table one row shorter."""
    if target.rope == "sequence":
        return sequence_angles(torch.arange(LENGTH), WIDTH // HEADS)
    return grid_rotations(target.prefix_length - 1, 4, WIDTH // HEADS)[:LENGTH]


@pytest.mark.parametrize("config", [TEXT, IMAGES], ids=["text", "LANTERN"])
@pytest.mark.parametrize("own", [True, False], ids=["own table", "shared table"])
def test_eagle_1_predicts_the_same_features(config, own):
    target = target_of(config)
    twin = Eagle1(vocab=VOCAB, width=WIDTH, heads=HEADS, kv_heads=2, hidden=48)
    twin = randomized(twin, seed=0)
    if not own:
        shared = torch.tensor(np.asarray(target.params["embedding"]["embedding"]))
        twin.embed_tokens.weight.copy_(shared)
    found = converted(twin.state_dict(), config=SAID, target=target)
    drafter = found.config
    assert drafter.config.own_embedding == own and drafter.feature_layers == (
        LAYERS - 1,
    )
    params = drafter.with_target_params(found.params, target.params)
    features, tokens = inputs()
    scale = torch.tensor(np.asarray(target.params["norm"]["scale"]))
    theirs = twin(normed(config, features) * scale, tokens, turns_of(config))
    ours, _ = drafter.network(found.params).layer(
        params["embedding"][as_jax(tokens)],
        drafter.inputs(params, as_jax(features)),
        drafter.angles(places()),
        causal(),
    )
    assert_close(ours, theirs, atol=1e-4)
    logits = drafter.scores(params, ours)
    head = torch.tensor(np.asarray(target.params["head"]))
    assert_close(logits, theirs @ head, atol=1e-4)


@pytest.mark.parametrize(
    ("shards", "scale"),
    [(HEADS, 1.0), (1, 1.0), (2, 4.0)],
    ids=["Anole", "Lumina", "2"],
)
def test_lanterns_heads_for_models_with_norms_predict_the_same(shards, scale):
    """A norm before the attention, norms of heads, embeddings made larger."""
    target = target_of(TEXT)
    twin = Eagle1(
        vocab=VOCAB, width=WIDTH, heads=HEADS, kv_heads=2, hidden=48,
        shards=shards, scale=scale,
    )  # fmt: skip
    twin = randomized(twin, seed=0)
    features, tokens = inputs()
    norm = torch.tensor(np.asarray(target.params["norm"]["scale"]))
    theirs = twin(normed(TEXT, features) * norm, tokens, turns_of(TEXT))

    def ours(**given):
        found = converted(twin.state_dict(), config=SAID, target=target, **given)
        drafter, params = (
            found.config,
            found.config.with_target_params(found.params, target.params),
        )
        return drafter.network(found.params).layer(
            params["embedding"][as_jax(tokens)],
            drafter.inputs(params, as_jax(features)),
            drafter.angles(places()),
            causal(),
        )[0]

    assert_close(ours(embed_upscale=scale), theirs, atol=1e-4)
    if scale > 1:  # the control: no file names it, and without it nothing fits
        with pytest.raises(AssertionError):
            assert_close(ours(), theirs, atol=1e-2)
    # Values of up to 1 change nothing in the published code.
    np.testing.assert_array_equal(ours(embed_upscale=0.5), ours())


# Of EAGLE-3's head: drafted tokens, width, heads, and its target's width where it says.
KINDS = {
    "some tokens": (16, WIDTH, HEADS, None),
    "all tokens": (VOCAB, WIDTH, HEADS, None),
    "narrower than its target": (16, WIDTH // 2, HEADS // 2, WIDTH),
}


def eagle_3(kind):
    """A twin's state dict and config, and the twin."""
    drafted, width, heads, target_width = KINDS[kind]
    twin = Eagle3(
        vocab=VOCAB,
        drafted=drafted,
        feature_layers=3,
        width=width,
        heads=heads,
        kv_heads=2,
        hidden=48,
        target_width=target_width,
    )
    tables = {"d2t": twin.d2t.clone(), "t2d": twin.t2d.clone()}
    del twin.d2t, twin.t2d
    twin = randomized(twin, seed=0)
    said = {**SAID, "num_attention_heads": heads, "hidden_size": width}
    if target_width is not None:
        said["target_hidden_size"] = target_width
    return {**twin.state_dict(), **tables}, said, twin


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("speculators", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_eagle_3_predicts_the_same_scores(kind, residual, speculators):
    target = target_of(TEXT)
    state, said, twin = eagle_3(kind)
    said |= {"norm_before_residual": residual}
    if speculators:
        state = {k.replace("midlayer.", "layers.0."): x for k, x in state.items()}
        layers = {k: said.pop(k) for k in (*SAID, "hidden_size")}
        said |= {"transformer_layer_config": layers}
        said |= {"eagle_aux_hidden_state_layer_ids": [2, 4, 5]}
    found = converted(state, config=said, target=target)
    drafter = found.config
    # By what enters the layers 2, 4 and 5 of 8: what leaves 1, 3 and 4.
    assert drafter.feature_layers == (1, 3, 4)
    params = drafter.with_target_params(found.params, target.params)
    drafted = state["t2d"] if state["t2d"].any() else torch.ones(VOCAB)
    np.testing.assert_array_equal(
        found.params["ids"], np.flatnonzero(np.asarray(drafted))
    )
    features, tokens = inputs(3)
    embedding = params["embedding"][as_jax(tokens)]
    if "embed_tokens.weight" in state:
        assert_close(embedding, twin.embed_tokens(tokens), atol=0)
    theirs, scores = twin(
        features, torch.tensor(np.asarray(embedding)), turns_of(TEXT), residual
    )

    def ours(features):
        out, _ = drafter.network(found.params).layer(
            embedding,
            drafter.inputs(params, as_jax(features)),
            drafter.angles(places()),
            causal(),
        )
        return out

    assert_close(ours(features), theirs, atol=1e-4)
    assert_close(drafter.scores(params, ours(features)), scores, atol=1e-4)
    # The control: the same features in another order of their layers.
    with pytest.raises(AssertionError):
        assert_close(ours(features.roll(WIDTH, -1)), theirs, atol=1e-4)


WRONG = {
    "a map of draft ids over all tokens": (
        "all tokens",
        lambda state, said: state["d2t"].index_copy_(
            0, torch.arange(2), torch.tensor([1, -1])
        ),
        "drafts all 40 tokens, and its d2t moves some",
    ),
    "made for a wider target": (
        "narrower than its target",
        lambda state, said: said.update(target_hidden_size=64),
        "target_hidden_size is 64, its target that it is 32",
    ),
    "no table of tokens": (
        "narrower than its target",
        lambda state, said: state.pop("embed_tokens.weight"),
        "is 16 wide, its target 32.* has no embed_tokens.weight; check",
    ),
    "no head": (
        "narrower than its target",
        lambda state, said: state.pop("lm_head.weight"),
        "share no table, but it has no lm_head.weight; check",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_eagle_3_head_of_another_form_or_target_is_refused(case):
    kind, change, words = WRONG[case]
    state, said, _ = eagle_3(kind)
    converted(state, config=said, target=target_of(TEXT))
    change(state, said)
    with pytest.raises(ConfigError, match=words):
        converted(state, config=said, target=target_of(TEXT))


def test_a_head_turns_by_its_own_config_whatever_its_target_does():
    """EAGLE's code knows no scaling: heads of scaled targets turn plainly."""
    scaled = replace(TEXT, rope_scaling=RopeScaling("llama3", 8.0, 16), rope_base=5e5)
    twin = Eagle1(vocab=VOCAB, width=WIDTH, heads=HEADS, kv_heads=2, hidden=48)
    twin = randomized(twin, seed=0)
    target = target_of(scaled)
    found = converted(twin.state_dict(), config=SAID, target=target)
    assert found.config.config.rope_base == 1e4
    features, tokens = inputs()
    scale = torch.tensor(np.asarray(target.params["norm"]["scale"]))
    theirs = twin(normed(scaled, features) * scale, tokens, turns_of(TEXT))
    drafter, params = (
        found.config,
        found.config.with_target_params(found.params, target.params),
    )
    ours, _ = drafter.network(found.params).layer(
        params["embedding"][as_jax(tokens)],
        drafter.inputs(params, as_jax(features)),
        drafter.angles(places()),
        causal(),
    )
    assert_close(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("lengths", [(6, 6, 6), (4, 1, 6)], ids=["full", "padded"])
def test_lanterns_target_gives_its_drafter_the_same_features(lengths):
    """Its mask adds the lowest float32 once for each reason not to look.

    What has both reasons is out of reach; where all else has one, all of it is looked
    at evenly: so padded positions see the caption that comes after them.
    """
    pair = make_pair("caption")
    embed, lowest = pair.twin.cls_embedding, torch.finfo(torch.float32).min
    torch.manual_seed(1)
    captions = torch.randn(3, CAPTION_LENGTH, CAPTION_WIDTH)
    captions, real = left_padded(captions, lengths)
    filled = torch.where(real[..., None], captions, 7.0)  # is read as zeros
    ours = Caption(as_jax(filled), jnp.asarray(real.numpy()))
    size = CAPTION_LENGTH
    mask = torch.full((size, size), lowest).triu(1)
    mask = mask + torch.zeros(3, size, size).masked_fill(~real[:, None], lowest)
    mask = torch.cat([mask, mask])  # both streams have the caption's padding
    x = torch.cat([embed(captions), embed.null(3)])
    turns = grid_rotations(size, GRID, pair.twin.head_dim)[:size]
    for layer in pair.twin.layers:
        x = published_layer(layer, x, turns, mask)
    wide = replace(pair.model.config, caption_length=size)
    model = Transformer(wide)
    layer = (wide.layers - 1,)
    found = make_target(model, feature_layers=layer, caption_padding="published")
    plain = make_target(model, feature_layers=layer)
    logits, features, cache = found.prefill(pair.params, ours, 4)
    assert_close(features, x, atol=1e-4)
    other, narrow, kept = plain.prefill(pair.params, ours, 4)
    np.testing.assert_array_equal(logits, other)  # of no token's scores
    np.testing.assert_array_equal(cache.visible, kept.visible)
    apart = np.abs(np.asarray(narrow) - np.asarray(features)).max(-1) > 1e-3
    padded = ~torch.cat([real, real]).numpy()
    # The control: every padded position of a null caption differs, no real one does.
    assert not apart[~padded].any() and apart[3:][padded[3:]].sum() >= 5 * (
        lengths != (6, 6, 6)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_padding_sees_the_caption_in_float32_alone(dtype):
    """The lowest numbers of two dtypes are not equal, so one reason hides the other."""
    valid = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    size = valid.shape[1]
    ahead = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)
    lowest = torch.finfo(getattr(torch, dtype)).min
    mask = ahead + torch.zeros(3, size, size).masked_fill(~valid[:, None], lowest)
    wanted = mask.softmax(-1) > 0  # scores of zeros
    found = lantern_padding_mask(jnp.asarray(valid.numpy()), jnp.dtype(dtype))
    for row in range(3):
        for place in torch.where(~valid[row])[0].tolist():
            assert found[row, place].tolist() == wanted[row, place].tolist()
    assert (dtype == "float32") == bool(found[0, 0, 2])
    assert not found[2].any()


def published_layer(layer, x, turns, mask):
    """A block of the target with an additive mask, as the release computes it."""
    attention = layer.attention
    h = layer.attention_norm(x)
    q, k, v = (
        t.unflatten(-1, (-1, attention.size))
        for t in attention.wqkv(h).split(attention.rows, -1)
    )
    q, k = rotate_pairs(q, turns), rotate_pairs(k, turns)
    scores = torch.einsum("rthf,rshf->rhts", q, k) / attention.size**0.5
    weights = (scores + mask[:, None]).softmax(-1)
    x = x + attention.wo(torch.einsum("rhts,rshf->rthf", weights, v).flatten(2))
    return x + layer.feed_forward(layer.ffn_norm(x))


def test_lanterns_heads_for_captions_ask_for_that():
    twin = Eagle1(vocab=VOCAB, width=WIDTH, heads=HEADS, kv_heads=HEADS, hidden=48)
    for config, padding in ((IMAGES, "published"), (TEXT, "self")):
        found = converted(
            twin.state_dict(), config=SAID, target=target_of(config), heads=HEADS
        )
        assert found.config.caption_padding == padding
    with pytest.raises(ConfigError, match="a model of sequences has none"):
        make_target(Transformer(TEXT), guided=False, caption_padding="published")


def test_medusa_guesses_the_same():
    target = target_of(TEXT)
    twin = randomized(Medusa(VOCAB, WIDTH, 3, 2), seed=0)
    found = converted(twin.state_dict(), target=target)
    drafter = found.config
    params = drafter.with_target_params(found.params, target.params)
    features, _ = inputs()
    for place, head in enumerate(twin):
        h = drafter.network(found.params).head(place, as_jax(features))
        assert_close(drafter.scores(params, place, h), head(features), atol=1e-4)


def hydra(deep, target):
    """A twin whose table of tokens is its target's."""
    twin = Hydra(VOCAB, WIDTH, 3, 2)
    if deep:
        twin = HydraPlusPlus(VOCAB, WIDTH, 3, 2, HEADS, 48)
    twin = randomized(twin, seed=0)
    table = torch.tensor(np.asarray(target.params["embedding"]["embedding"]))
    twin.input_embed_fn.weight.copy_(table)
    return twin


@pytest.mark.parametrize("deep", [False, True], ids=["Hydra", "Hydra++"])
@pytest.mark.parametrize("registered", [True, False], ids=["whole", "heads alone"])
def test_hydra_guesses_the_same(deep, registered):
    target = target_of(TEXT)
    twin = hydra(deep, target)
    state = twin.state_dict()
    if not registered:
        state.pop("input_embed_fn.weight")
    found = converted(state, config=SAID, target=target)
    drafter = found.config
    params = drafter.with_target_params(found.params, target.params)
    network = drafter.network(found.params)
    features, tokens = inputs()
    ours, theirs = as_jax(features), features
    if deep:
        angles = turns_of(TEXT)
        theirs = twin.prefix(features, angles)
        both = jnp.stack([jnp.cos(as_jax(angles)), jnp.sin(as_jax(angles))], axis=-1)
        both = jnp.broadcast_to(both, (ROWS, *both.shape))
        ours, _ = network.prefix(ours, both, causal())
        assert_close(ours, theirs, atol=1e-4)
    for place in range(3):
        path = [tokens.roll(-i, 1) for i in range(place + 1)]
        seen = torch.cat([twin.input_embed_fn(x) for x in path], dim=-1)
        mine = [params["embedding"][as_jax(x)] for x in path]
        scores = twin(place, theirs, seen)

        def guesses(mine, place=place):
            h = network.head(place, ours, jnp.concatenate(mine, -1))
            return drafter.scores(params, place, h)

        assert_close(guesses(mine), scores, atol=1e-4)
        # The control: the path read one token too far.
        ahead = [jnp.roll(x, -1, axis=1) for x in mine]
        with pytest.raises(AssertionError):
            assert_close(guesses(ahead), scores, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_hydras_table_is_its_targets_in_any_dtype(kind):
    """Files of two dtypes differ by what the shorter one rounds; no more is allowed."""
    target = target_of(TEXT)
    state = hydra(False, target).state_dict()
    table = state["input_embed_fn.weight"].to(kind)
    converted({**state, "input_embed_fn.weight": table}, target=target)
    other = table.clone()
    other[3, 5] += 0.1
    with pytest.raises(ConfigError, match="input_embed_fn.weight is not the embedding"):
        converted({**state, "input_embed_fn.weight": other}, target=target)
    with pytest.raises(ConfigError, match=r"through a table of \(39, 32\)"):
        converted({**state, "input_embed_fn.weight": table[1:]}, target=target)


def test_a_table_of_offsets_is_not_one_of_tokens():
    """`d2t` is added to a draft's id; read as ids it would name tokens twice."""
    target = target_of(TEXT)
    twin = Eagle3(
        vocab=VOCAB,
        drafted=16,
        feature_layers=3,
        width=WIDTH,
        heads=HEADS,
        kv_heads=2,
        hidden=48,
    )
    state = {**twin.state_dict(), "d2t": -torch.arange(16)}
    with pytest.raises(ConfigError, match="d2t and t2d name different tokens"):
        converted(state, config=SAID, target=target)
    state.pop("t2d")
    with pytest.raises(ConfigError, match="d2t names a token twice"):
        converted(state, config=SAID, target=target)
    state.pop("d2t")
    with pytest.raises(ConfigError, match="has no d2t that says which"):
        converted(state, config=SAID, target=target)
