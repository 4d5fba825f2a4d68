# ruff: noqa: E402
"""Converted EAGLE, LANTERN, Medusa and Hydra drafters against PyTorch."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import RopeScaling, TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer, lantern_padding_mask
from jaxspec.models.transformer.prompts import Caption
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
CONFIG_JSON = {
    "num_attention_heads": HEADS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}


def target_of(config):
    """Target checkpoint with the parameters that drafters share, and no others."""
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


def positions():
    return jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))


def turns_of(target):
    """Text: by the position of the feature. Images: LANTERN's table, shifted by one."""
    if target.rope == "sequence":
        return sequence_angles(torch.arange(LENGTH), WIDTH // HEADS)
    return grid_rotations(target.prefix_length - 1, 4, WIDTH // HEADS)[:LENGTH]


@pytest.mark.parametrize("config", [TEXT, IMAGES], ids=["text", "LANTERN"])
@pytest.mark.parametrize(
    "own_embedding", [True, False], ids=["own table", "shared table"]
)
def test_eagle_1_predicts_the_same_features(config, own_embedding):
    target = target_of(config)
    torch_model = Eagle1(vocab=VOCAB, width=WIDTH, heads=HEADS, kv_heads=2, hidden=48)
    torch_model = randomized(torch_model, seed=0)
    if not own_embedding:
        shared = torch.tensor(np.asarray(target.params["embedding"]["embedding"]))
        torch_model.embed_tokens.weight.copy_(shared)
    checkpoint = converted(torch_model.state_dict(), config=CONFIG_JSON, target=target)
    drafter = checkpoint.model
    assert drafter.config.own_embedding == own_embedding and drafter.feature_layers == (
        LAYERS - 1,
    )
    params = drafter.with_target_params(checkpoint.params, target.params)
    features, tokens = inputs()
    scale = torch.tensor(np.asarray(target.params["norm"]["scale"]))
    reference = torch_model(normed(config, features) * scale, tokens, turns_of(config))
    actual, _ = drafter.network(checkpoint.params).layer(
        params["embedding"][as_jax(tokens)],
        drafter.inputs(params, as_jax(features)),
        drafter.angles(positions()),
        causal(),
    )
    assert_close(actual, reference, atol=1e-4)
    logits = drafter.scores(params, actual)
    head = torch.tensor(np.asarray(target.params["head"]))
    assert_close(logits, reference @ head, atol=1e-4)


@pytest.mark.parametrize(
    ("shards", "scale"),
    [(HEADS, 1.0), (1, 1.0), (2, 4.0)],
    ids=["Anole", "Lumina", "2"],
)
def test_lantern_drafters_for_models_with_norms_predict_the_same(shards, scale):
    """A norm before the attention, norms of heads, and scaled embeddings."""
    target = target_of(TEXT)
    torch_model = Eagle1(
        vocab=VOCAB, width=WIDTH, heads=HEADS, kv_heads=2, hidden=48,
        shards=shards, scale=scale,
    )  # fmt: skip
    torch_model = randomized(torch_model, seed=0)
    features, tokens = inputs()
    norm = torch.tensor(np.asarray(target.params["norm"]["scale"]))
    reference = torch_model(normed(TEXT, features) * norm, tokens, turns_of(TEXT))

    def actual(**options):
        checkpoint = converted(
            torch_model.state_dict(), config=CONFIG_JSON, target=target, **options
        )
        drafter, params = (
            checkpoint.model,
            checkpoint.model.with_target_params(checkpoint.params, target.params),
        )
        return drafter.network(checkpoint.params).layer(
            params["embedding"][as_jax(tokens)],
            drafter.inputs(params, as_jax(features)),
            drafter.angles(positions()),
            causal(),
        )[0]

    assert_close(actual(embed_upscale=scale), reference, atol=1e-4)
    if scale > 1:  # the control: no file has this setting, and outputs depend on it
        with pytest.raises(AssertionError):
            assert_close(actual(), reference, atol=1e-2)
    # Values of up to 1 change nothing in the published code.
    np.testing.assert_array_equal(actual(embed_upscale=0.5), actual())


# EAGLE-3: drafted tokens, width, heads, and target width where the config has it.
KINDS = {
    "some tokens": (16, WIDTH, HEADS, None),
    "all tokens": (VOCAB, WIDTH, HEADS, None),
    "narrower than its target": (16, WIDTH // 2, HEADS // 2, WIDTH),
}


def eagle_3(kind):
    """State dict, JSON config and PyTorch module."""
    drafted, width, heads, target_width = KINDS[kind]
    torch_model = Eagle3(
        vocab=VOCAB,
        drafted=drafted,
        feature_layers=3,
        width=width,
        heads=heads,
        kv_heads=2,
        hidden=48,
        target_width=target_width,
    )
    tables = {"d2t": torch_model.d2t.clone(), "t2d": torch_model.t2d.clone()}
    del torch_model.d2t, torch_model.t2d
    torch_model = randomized(torch_model, seed=0)
    config_json = {**CONFIG_JSON, "num_attention_heads": heads, "hidden_size": width}
    if target_width is not None:
        config_json["target_hidden_size"] = target_width
    return {**torch_model.state_dict(), **tables}, config_json, torch_model


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("speculators", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_eagle_3_predicts_the_same_scores(kind, residual, speculators):
    target = target_of(TEXT)
    state, config_json, torch_model = eagle_3(kind)
    config_json |= {"norm_before_residual": residual}
    if speculators:
        state = {k.replace("midlayer.", "layers.0."): x for k, x in state.items()}
        layers = {k: config_json.pop(k) for k in (*CONFIG_JSON, "hidden_size")}
        config_json |= {"transformer_layer_config": layers}
        config_json |= {"eagle_aux_hidden_state_layer_ids": [2, 4, 5]}
    checkpoint = converted(state, config=config_json, target=target)
    drafter = checkpoint.model
    # Inputs of layers 2, 4 and 5 of 8, which are the outputs of layers 1, 3 and 4.
    assert drafter.feature_layers == (1, 3, 4)
    params = drafter.with_target_params(checkpoint.params, target.params)
    drafted = state["t2d"] if state["t2d"].any() else torch.ones(VOCAB)
    np.testing.assert_array_equal(
        checkpoint.params["ids"], np.flatnonzero(np.asarray(drafted))
    )
    features, tokens = inputs(3)
    embedding = params["embedding"][as_jax(tokens)]
    if "embed_tokens.weight" in state:
        assert_close(embedding, torch_model.embed_tokens(tokens), atol=0)
    reference, scores = torch_model(
        features, torch.tensor(np.asarray(embedding)), turns_of(TEXT), residual
    )

    def actual(features):
        out, _ = drafter.network(checkpoint.params).layer(
            embedding,
            drafter.inputs(params, as_jax(features)),
            drafter.angles(positions()),
            causal(),
        )
        return out

    assert_close(actual(features), reference, atol=1e-4)
    assert_close(drafter.scores(params, actual(features)), scores, atol=1e-4)
    # Control: the features of the layers in another order.
    with pytest.raises(AssertionError):
        assert_close(actual(features.roll(WIDTH, -1)), reference, atol=1e-4)


WRONG = {
    "a map of draft ids over all tokens": (
        "all tokens",
        lambda state, config_json: state["d2t"].index_copy_(
            0, torch.arange(2), torch.tensor([1, -1])
        ),
        "drafts all 40 tokens, and its d2t moves some",
    ),
    "made for a wider target": (
        "narrower than its target",
        lambda state, config_json: config_json.update(target_hidden_size=64),
        "target_hidden_size is 64 in config.json, but 32 in its target",
    ),
    "no table of tokens": (
        "narrower than its target",
        lambda state, config_json: state.pop("embed_tokens.weight"),
        "is 16 wide, its target 32.* has no embed_tokens.weight; check",
    ),
    "no head": (
        "narrower than its target",
        lambda state, config_json: state.pop("lm_head.weight"),
        "share no table, but it has no lm_head.weight; check",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_unsupported_eagle_3_checkpoints_are_refused(case):
    kind, change, words = WRONG[case]
    state, config_json, _ = eagle_3(kind)
    converted(state, config=config_json, target=target_of(TEXT))
    change(state, config_json)
    with pytest.raises(ConfigError, match=words):
        converted(state, config=config_json, target=target_of(TEXT))


def test_rope_scaling_of_the_target_does_not_apply_to_eagle():
    """The code of EAGLE has no scaling, also for targets that have it."""
    scaled = replace(TEXT, rope_scaling=RopeScaling("llama3", 8.0, 16), rope_base=5e5)
    torch_model = Eagle1(vocab=VOCAB, width=WIDTH, heads=HEADS, kv_heads=2, hidden=48)
    torch_model = randomized(torch_model, seed=0)
    target = target_of(scaled)
    checkpoint = converted(torch_model.state_dict(), config=CONFIG_JSON, target=target)
    assert checkpoint.config.rope_base == 1e4
    features, tokens = inputs()
    scale = torch.tensor(np.asarray(target.params["norm"]["scale"]))
    reference = torch_model(normed(scaled, features) * scale, tokens, turns_of(TEXT))
    drafter, params = (
        checkpoint.model,
        checkpoint.model.with_target_params(checkpoint.params, target.params),
    )
    actual, _ = drafter.network(checkpoint.params).layer(
        params["embedding"][as_jax(tokens)],
        drafter.inputs(params, as_jax(features)),
        drafter.angles(positions()),
        causal(),
    )
    assert_close(actual, reference, atol=1e-4)


@pytest.mark.parametrize("lengths", [(6, 6, 6), (4, 1, 6)], ids=["full", "padded"])
def test_lanterns_target_has_the_same_features_at_padding(lengths):
    """LANTERN adds the lowest float32 for later positions, and again for padding.

    Both together are -inf. If all other positions have one of them, softmax gives these
    equal weights: padded positions attend to the caption after them.
    """
    pair = make_pair("caption")
    embed, lowest = pair.torch_model.cls_embedding, torch.finfo(torch.float32).min
    torch.manual_seed(1)
    captions = torch.randn(3, CAPTION_LENGTH, CAPTION_WIDTH)
    captions, real = left_padded(captions, lengths)
    filled = torch.where(real[..., None], captions, 7.0)  # replaced by zeros
    prompt = Caption(as_jax(filled), jnp.asarray(real.numpy()))
    size = CAPTION_LENGTH
    mask = torch.full((size, size), lowest).triu(1)
    mask = mask + torch.zeros(3, size, size).masked_fill(~real[:, None], lowest)
    mask = torch.cat([mask, mask])  # both branches have the padding of the caption
    x = torch.cat([embed(captions), embed.null(3)])
    turns = grid_rotations(size, GRID, pair.torch_model.head_dim)[:size]
    for layer in pair.torch_model.layers:
        x = published_layer(layer, x, turns, mask)
    wide = replace(pair.model.config, caption_length=size)
    model = Transformer(wide)
    layer = (wide.layers - 1,)
    published = model.as_target(feature_layers=layer, caption_padding="published")
    plain = model.as_target(feature_layers=layer)
    logits, features, cache = published.prefill(pair.params, prompt, 4)
    assert_close(features, x, atol=1e-4)
    plain_logits, plain_features, plain_cache = plain.prefill(pair.params, prompt, 4)
    np.testing.assert_array_equal(logits, plain_logits)
    np.testing.assert_array_equal(cache.visible, plain_cache.visible)
    differs = np.abs(np.asarray(plain_features) - np.asarray(features)).max(-1) > 1e-3
    padded = ~torch.cat([real, real]).numpy()
    # Control: every padded position of a null caption differs, no other one does.
    assert not differs[~padded].any() and differs[3:][padded[3:]].sum() >= 5 * (
        lengths != (6, 6, 6)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_padding_attends_to_the_caption_in_float32_only(dtype):
    """The lowest float32 is below those of shorter dtypes, so that it masks."""
    valid = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    size = valid.shape[1]
    ahead = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)
    lowest = torch.finfo(getattr(torch, dtype)).min
    mask = ahead + torch.zeros(3, size, size).masked_fill(~valid[:, None], lowest)
    expected = mask.softmax(-1) > 0  # scores of zeros
    actual = lantern_padding_mask(jnp.asarray(valid.numpy()), jnp.dtype(dtype))
    for row in range(3):
        for position in torch.where(~valid[row])[0].tolist():
            assert actual[row, position].tolist() == expected[row, position].tolist()
    assert (dtype == "float32") == bool(actual[0, 0, 2])
    assert not actual[2].any()


def published_layer(layer, x, turns, mask):
    """Layer of the target with an additive mask, as in the released code."""
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


def test_lanterns_caption_drafters_select_the_published_padding():
    torch_model = Eagle1(
        vocab=VOCAB, width=WIDTH, heads=HEADS, kv_heads=HEADS, hidden=48
    )
    for config, padding in ((IMAGES, "published"), (TEXT, "self")):
        checkpoint = converted(
            torch_model.state_dict(),
            config=CONFIG_JSON,
            target=target_of(config),
            heads=HEADS,
        )
        assert checkpoint.model.caption_padding == padding
    with pytest.raises(ConfigError, match="needs a model with rope='grid'"):
        Transformer(TEXT).as_target(cfg=False, caption_padding="published")


def test_medusa_drafts_agree():
    target = target_of(TEXT)
    torch_model = randomized(Medusa(VOCAB, WIDTH, 3, 2), seed=0)
    checkpoint = converted(torch_model.state_dict(), target=target)
    drafter = checkpoint.model
    params = drafter.with_target_params(checkpoint.params, target.params)
    features, _ = inputs()
    for i, head in enumerate(torch_model):
        h = drafter.network(checkpoint.params).head(i, as_jax(features))
        assert_close(drafter.scores(params, i, h), head(features), atol=1e-4)


def hydra(deep, target):
    """PyTorch Hydra whose embedding is that of its target."""
    torch_model = Hydra(VOCAB, WIDTH, 3, 2)
    if deep:
        torch_model = HydraPlusPlus(VOCAB, WIDTH, 3, 2, HEADS, 48)
    torch_model = randomized(torch_model, seed=0)
    table = torch.tensor(np.asarray(target.params["embedding"]["embedding"]))
    torch_model.input_embed_fn.weight.copy_(table)
    return torch_model


@pytest.mark.parametrize("deep", [False, True], ids=["Hydra", "Hydra++"])
@pytest.mark.parametrize("registered", [True, False], ids=["whole", "heads alone"])
def test_hydra_drafts_agree(deep, registered):
    target = target_of(TEXT)
    torch_model = hydra(deep, target)
    state = torch_model.state_dict()
    if not registered:
        state.pop("input_embed_fn.weight")
    checkpoint = converted(state, config=CONFIG_JSON, target=target)
    drafter = checkpoint.model
    params = drafter.with_target_params(checkpoint.params, target.params)
    network = drafter.network(checkpoint.params)
    features, tokens = inputs()
    actual, reference = as_jax(features), features
    if deep:
        angles = turns_of(TEXT)
        reference = torch_model.prefix(features, angles)
        both = jnp.stack([jnp.cos(as_jax(angles)), jnp.sin(as_jax(angles))], axis=-1)
        both = jnp.broadcast_to(both, (ROWS, *both.shape))
        actual, _ = network.prefix(actual, both, causal())
        assert_close(actual, reference, atol=1e-4)
    for i in range(3):
        path = [tokens.roll(-j, 1) for j in range(i + 1)]
        embeddings = torch.cat([torch_model.input_embed_fn(x) for x in path], dim=-1)
        path_embeddings = [params["embedding"][as_jax(x)] for x in path]
        scores = torch_model(i, reference, embeddings)

        def logits(path_embeddings, i=i):
            h = network.head(i, actual, jnp.concatenate(path_embeddings, -1))
            return drafter.scores(params, i, h)

        assert_close(logits(path_embeddings), scores, atol=1e-4)
        # Control: the path is read one token too far.
        ahead = [jnp.roll(x, -1, axis=1) for x in path_embeddings]
        with pytest.raises(AssertionError):
            assert_close(logits(ahead), scores, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_the_embedding_of_hydra_is_that_of_its_target_in_any_dtype(kind):
    """Files of two dtypes may differ by the rounding of the shorter one only."""
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


def test_a_table_of_offsets_is_not_a_table_of_ids():
    """`d2t` is added to the ids of a draft; read as ids it would repeat tokens."""
    target = target_of(TEXT)
    torch_model = Eagle3(
        vocab=VOCAB,
        drafted=16,
        feature_layers=3,
        width=WIDTH,
        heads=HEADS,
        kv_heads=2,
        hidden=48,
    )
    state = {**torch_model.state_dict(), "d2t": -torch.arange(16)}
    with pytest.raises(ConfigError, match="d2t and t2d name different tokens"):
        converted(state, config=CONFIG_JSON, target=target)
    state.pop("t2d")
    with pytest.raises(ConfigError, match="d2t names a token twice"):
        converted(state, config=CONFIG_JSON, target=target)
    state.pop("d2t")
    with pytest.raises(ConfigError, match="has no d2t"):
        converted(state, config=CONFIG_JSON, target=target)
