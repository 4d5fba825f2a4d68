"""Drafter training: the same predictions as in drafting, and better drafts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import Checkpoint
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.data.image_tokens import TokenSource
from jaxspec.data.text import byte_windows
from jaxspec.drafters import Falcon, FalconConfig
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.kangaroo.drafter import Kangaroo, KangarooConfig
from jaxspec.drafters.medusa.drafter import Medusa
from jaxspec.drafters.ppd.drafter import PPD, PPDConfig
from jaxspec.drafters.registry import kind_of
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.draft import DraftContext, InitContext
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.train import teacher as teacher_module
from jaxspec.train.divergence import divergence, overlap
from jaxspec.train.drafter import drafter_losses, make_step
from jaxspec.train.feature_cache import cache_features
from jaxspec.train.optimizer import init_train_state
from jaxspec.train.settings import DrafterTrainingConfig
from jaxspec.train.teacher import run_teacher
from tests.drafters.tiny import EAGLE, HEADS, NARROW, bound_params
from tests.drafters.tiny import TARGET as WIDE
from tests.models.tiny import random_params

TARGET = replace(WIDE, extra_tokens=0)
BLOCK = DFlashConfig(
    block_size=4,
    layers=2,
    width=32,
    heads=2,
    ffn_width=48,
    feature_layers=(0, 2),
    markov_rank=6,
)
THREE = replace(EAGLE, version=3, feature_layers=(0, 1, 2))
KINDS = {
    "block": DFlash(BLOCK, TARGET),
    "block of 32, fewer queries run": DFlash(
        replace(BLOCK, block_size=32, kv_heads=1), TARGET
    ),
    "block, whole, in a window": DFlash(
        replace(BLOCK, causal=False, markov_rank=0, window=3), TARGET
    ),
    "block, judged": DFlash(replace(BLOCK, confidence=True, window=2), TARGET),
    "block, row above": DFlash(replace(BLOCK, above=True), replace(TARGET, grid=8)),
    "block, refined": DFlash(replace(BLOCK, refinements=4), TARGET),
    "eagle-1": Eagle(EAGLE, TARGET),
    "eagle-3": Eagle(THREE, TARGET),
    "eagle-3, narrower": Eagle(NARROW, TARGET),
    "falcon": Falcon(FalconConfig(2, 32, 2, 48), TARGET),
    "kangaroo": Kangaroo(KangarooConfig(2, 2), TARGET),
    "prompt tokens": PPD(PPDConfig(4), TARGET),
    "medusa": Medusa(replace(HEADS, own_output=True), TARGET),
    "hydra++": Medusa(
        replace(HEADS, sequential=True, prefix_heads=2, prefix_ffn_width=32), TARGET
    ),
}
PARAMS = random_params(TARGET)


# Kangaroo predicts one token at a time; prompt tokens are part of the target's pass.
AHEAD = [kind for kind in KINDS if kind not in ("kangaroo", "prompt tokens")]


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if slow else ())
        for kind in AHEAD
        for slow in [", " in kind or kind.startswith(("block of", "falcon"))]
    ],
)
def test_training_and_drafting_compute_the_same_logits(kind, monkeypatch):
    """Training on a drafted chain as data gives the logits of the draft."""
    drafter, batch, root = KINDS[kind], 2, 6  # the root's absolute position
    tree = Tree.chain(4)
    params = {**bound_params(drafter), "embedding": PARAMS["embedding"]["embedding"]}
    params = drafter.with_target_params(params["own"], PARAMS)
    tokens = jax.random.randint(jax.random.key(1), (batch, 16), 0, TARGET.vocab_size)
    labels, null = jnp.array([0, 2]), jnp.zeros(batch, bool)
    known = jnp.pad(tokens, ((0, 0), (1, 0)))
    before = run_teacher(TARGET, PARAMS, drafter.feature_layers, tokens, labels, null)
    # Tokens as the prompt, by position: heads need the token after each feature.
    start = InitContext(known, before.features, jnp.full(batch, root), tree, batch, 8)
    state = drafter.init(params, start)
    ctx = DraftContext(
        known[:, root],
        tokens,
        jnp.full(batch, root),
        jnp.full(batch, root),
        jnp.zeros((batch, 5, TARGET.vocab_size)),
        batch_keys(0, batch),
        Sampling.create(batch),
        tree,
        selection="top",
        order=("temperature",),
    )
    draft, _ = drafter.propose(params, state, ctx)
    # The drafted tokens replace those of the data; the tokens before stay the same.
    tokens = tokens.at[:, root : root + 4].set(draft.tokens[:, 1:])
    teacher = run_teacher(TARGET, PARAMS, drafter.feature_layers, tokens, labels, null)
    at = root if kind.startswith("block") else root - 1
    monkeypatch.setattr(jax.random, "randint", lambda *a, **k: jnp.full((batch, 1), at))
    ones = lambda *a, **k: jnp.ones((batch, 1), bool)  # noqa: E731
    monkeypatch.setattr(jax.random, "bernoulli", ones)
    monkeypatch.setattr("jaxspec.drafters.dflash.training.ANCHORS", 1)
    outputs = kind_of(drafter.config).training_outputs(
        drafter, params["own"], teacher, jax.random.key(0)
    )
    assert (outputs.positions[:, 0, :4] == root + 1 + jnp.arange(4)).all()
    log_q = jax.nn.log_softmax(outputs.logits[:, 0, :4])
    np.testing.assert_allclose(log_q, draft.log_q, atol=1e-4)
    assert (outputs.confidence is None) == (draft.confidence is None)
    if outputs.confidence is not None:
        confidence = jax.nn.sigmoid(outputs.confidence[:, 0, :4])
        np.testing.assert_allclose(confidence, draft.confidence[:, 1:], atol=1e-5)
        assert np.ptp(confidence) > 1e-3


@pytest.mark.slow
def test_kangaroo_is_trained_on_the_logits_that_it_drafts_from():
    """Training outputs equal those of decoding with a cache, one token at a time."""
    drafter, batch = KINDS["kangaroo"], 2
    drafter_params = drafter.init_params(jax.random.key(2))
    params = drafter.with_target_params(drafter_params, PARAMS)
    tokens = jax.random.randint(jax.random.key(1), (batch, 16), 0, TARGET.vocab_size)
    labels, null = jnp.array([0, 2]), jnp.zeros(batch, bool)
    teacher = run_teacher(TARGET, PARAMS, drafter.feature_layers, tokens, labels, null)
    outputs = kind_of(drafter.config).training_outputs(
        drafter, drafter_params, teacher, jax.random.key(4)
    )
    model = drafter.drafter.model
    first, _, cache = model.prefill(params, labels, 16)
    both, branches = jnp.concatenate([tokens] * 2), 2 * batch
    decoded = [first[:batch]]
    for t in range(15):
        mask = jnp.broadcast_to(
            jnp.arange(cache.capacity) <= t + 1, (branches, 1, cache.capacity)
        )
        position = jnp.full((branches, 1), t + 1)
        logits, _, cache = model.forward(
            params, cache, both[:, t : t + 1], position, mask
        )
        cache = replace(cache, lengths=cache.lengths + 1)
        decoded.append(logits[:batch, 0])
    decoded = jnp.stack(decoded, axis=1)  # of token t, given those before
    expected = jnp.take_along_axis(decoded, outputs.positions - 1, axis=1)
    np.testing.assert_allclose(outputs.logits[:, :, 0], expected, atol=1e-4)


@pytest.mark.slow
def test_prompt_tokens_are_trained_on_the_logits_that_they_draft_from():
    """Training outputs equal those of one pass over tokens and prompt tokens."""
    drafter, batch = KINDS["prompt tokens"], 2
    drafter_params = drafter.init_params(jax.random.key(2))
    tokens = jax.random.randint(jax.random.key(1), (batch, 16), 0, TARGET.vocab_size)
    labels, null = jnp.array([0, 2]), jnp.array([False, True])
    teacher = run_teacher(TARGET, PARAMS, (), tokens, labels, null)
    outputs = kind_of(drafter.config).training_outputs(
        drafter, drafter_params, teacher, jax.random.key(4)
    )
    model = Transformer(drafter.extended_target)
    params = drafter.extend_params(drafter_params, PARAMS)
    ids = TARGET.vocab_size + jnp.arange(4)
    for block in (0, 7):
        known = int(outputs.positions[0, block, 0]) - 2  # tokens before the block
        inputs = jnp.concatenate(
            [tokens[:, :known], jnp.broadcast_to(ids, (batch, 4))], axis=1
        )
        logits, _ = model.score(params, labels, inputs, null=null)
        np.testing.assert_allclose(outputs.logits[:, block], logits[:, -4:], atol=1e-4)


def test_divergences_match_their_definitions():
    p, q = jax.random.normal(jax.random.key(0), (2, 3, 4, 7))
    tokens = jax.random.randint(jax.random.key(1), (3, 4), 0, 7)
    valid = jnp.ones((3, 4), bool)
    a, b = np.asarray(jax.nn.softmax(p)), np.asarray(jax.nn.softmax(q))
    expected = {
        "cross_entropy": -np.log(np.take_along_axis(b, tokens[..., None], -1)[..., 0]),
        "forward_kl": -(a * np.log(b)).sum(-1),
        "reverse_kl": (b * np.log(b / a)).sum(-1),
        "tvd": np.abs(a - b).sum(-1) / 2,
    }
    for name, value in expected.items():
        result = divergence(name, p, q, tokens, valid)
        np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(overlap(p, q), 1 - expected["tvd"], rtol=1e-5)


def test_tvd_plus_moves_along_a_whitened_gradient_of_tvd():
    """For one prediction, whitening only scales the gradient."""
    p, q = jax.random.normal(jax.random.key(0), (2, 1, 7))
    tokens, valid = jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    plain, whitened = (
        jax.grad(lambda q, n=name: divergence(n, p, q, tokens, valid).sum())(q)
        for name in ("tvd", "tvd++")
    )
    ratio = np.asarray(whitened / plain)
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    assert ratio[0, 0] > 1


# Training for a toy target, on sequences that the target generates.

SLOW = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("eagle-1", "eagle-3", "block", "hydra++", "kangaroo", "falcon")
]
LEARNED = ["medusa", *SLOW]
SHARP = {**PARAMS, "head": 4.0 * PARAMS["head"]}


@pytest.fixture(scope="module")
def self_generated():
    """Tokens generated by the target, and their classes."""
    batch = 256
    labels = jnp.arange(batch) % 3
    target = Transformer(TARGET).as_target(cfg=False)
    run = jax.jit(Engine(target, 16, order=("temperature",)).generate)
    keys = batch_keys(0, batch)
    out = run(Variables(SHARP), labels, sampling=Sampling.create(), keys=keys)
    return out.tokens, labels


def overlaps_of(kind, sequences):
    """Held-out overlap by index in the block, before and after training."""
    drafter = KINDS[kind]
    tokens, labels = sequences
    config = DrafterTrainingConfig(
        steps=150, batch=32, learning_rate=3e-3, warmup=5, ema=0.9, null_share=0.0
    )

    @jax.jit
    def heldout_overlap(params, key):
        overlaps = drafter_losses(
            drafter, config, params, SHARP, tokens[224:], labels[224:], key
        )[1]
        return jnp.nanmean(overlaps, axis=(0, 1))

    step = make_step(drafter, config, {})

    def body(state, i):
        indices = jax.random.randint(jax.random.fold_in(KEY, i), (32,), 0, 224)
        batch = tokens[indices], labels[indices], None
        return step(state, SHARP, i, batch)[0], None

    params = drafter.init_params(jax.random.key(5))
    run = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(config.steps))[0])
    trained = run(init_train_state(config, params))["average"]
    return heldout_overlap(params, KEY), heldout_overlap(trained, KEY)


@pytest.mark.slow
def test_prompt_tokens_learn_to_look_ahead(self_generated):
    """The drafter reads no features, only the target's keys and values."""
    before, after = overlaps_of("prompt tokens", self_generated)
    assert (after > before + 0.03).all(), (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNED)
def test_drafters_learn_from_the_features_of_their_target(
    kind, self_generated, monkeypatch
):
    before, after = overlaps_of(kind, self_generated)

    class Shuffled(teacher_module.Transformer):
        """The control: features of another sequence."""

        def score(self, *arguments, **options):
            logits, features = super().score(*arguments, **options)
            return logits, jnp.roll(features, 1, axis=0)

    monkeypatch.setattr(teacher_module, "Transformer", Shuffled)
    _, control = overlaps_of(kind, self_generated)
    assert after[0] > 1.3 * before[0], (before, after)
    assert after[0] > control[0] + 0.03, (control, after)


KEY = jax.random.key(11)


@pytest.mark.variants(1)
@pytest.mark.parametrize("max_cfg_scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["block", "eagle-3", "medusa"])
@pytest.mark.slow
def test_cached_features_give_the_same_losses(kind, max_cfg_scale, tmp_path):
    """Also for mirrored sequences; a second call reads the cache of the first."""
    drafter, labels = KINDS[kind], np.arange(5, dtype=np.int32) % 3
    tokens = np.random.default_rng(0).integers(19, size=(2, 5, 16)).astype(np.uint16)
    source, prior = TokenSource(tokens, labels, ""), Checkpoint("prior", TARGET, PARAMS)
    options = dict(dtype="float32", cache_dir=tmp_path, batch=4)
    cache = cache_features(prior, drafter.feature_layers, source, **options)
    [file] = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = cache_features(prior, drafter.feature_layers, source, **options)
    assert file.stat().st_mtime_ns == written
    np.testing.assert_array_equal(cache, again)
    indices = np.array([7, 0, 4])  # the first is mirrored
    sequences = source.at(indices)
    np.testing.assert_array_equal(sequences[0][0], tokens[1, 2])
    config = DrafterTrainingConfig(1, 3, max_cfg_scale=max_cfg_scale, null_share=0.5)
    args = drafter, config, drafter.init_params(KEY), PARAMS, *sequences, KEY
    fresh = drafter_losses(*args)
    cached = drafter_losses(*args, np.asarray(cache[indices]))
    for a, b in zip(fresh, cached, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    wrong = drafter_losses(*args, np.asarray(cache[indices - 1]))[0]
    assert np.nanmax(np.abs(wrong - fresh[0])) > 0.01


def test_features_of_random_text_windows_are_not_cached(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be " * 20)
    source = byte_windows(tmp_path / "a.txt", 16, heldout=False)
    with pytest.raises(ConfigError, match="set cached='no'"):
        prior = Checkpoint("prior", TARGET, PARAMS)
        cache_features(prior, (0,), source, dtype="float32", cache_dir=tmp_path)
