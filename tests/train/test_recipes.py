"""Training computes what drafting computes, and makes drafts better."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import (
    DFlashConfig,
    FalconConfig,
    KangarooConfig,
    PPDConfig,
)
from jaxspec.data.codes import CodeSource
from jaxspec.data.text import TextSource
from jaxspec.drafters.block_diffusion import DFlash
from jaxspec.drafters.falcon import Falcon
from jaxspec.drafters.feature_head import Eagle
from jaxspec.drafters.kangaroo import Kangaroo
from jaxspec.drafters.parallel_heads import Medusa
from jaxspec.drafters.prompt_tokens import PPD
from jaxspec.errors import ConfigError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.draft import DraftContext, InitContext
from jaxspec.spec.loop import generate
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine
from jaxspec.spec.tree import Tree
from jaxspec.train.divergence import divergence, overlap
from jaxspec.train.drafter import drafter_losses, make_step
from jaxspec.train.experiment import DrafterTrainingConfig
from jaxspec.train.kept_features import keep_features
from jaxspec.train.optimizer import begin
from jaxspec.train.recipes import lesson as lessons
from jaxspec.train.recipes import recipe_of
from jaxspec.train.recipes.lesson import run_teacher
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
    "block of 32, fewer rows run": DFlash(
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


# Kangaroo guesses one token at a time; prompt tokens ride in the target's own pass.
AHEAD = [kind for kind in KINDS if kind not in ("kangaroo", "prompt tokens")]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if slow else ())
        for kind in AHEAD
        for slow in [", " in kind or kind.startswith(("block of", "falcon"))]
    ],
)
def test_training_and_drafting_compute_the_same_laws(kind, monkeypatch):
    """A chain that was drafted, put into the data: the recipe guesses the same."""
    drafter, rows, root = KINDS[kind], 2, 6  # the root's absolute position
    tree = Tree.chain(4)
    params = {**bound_params(drafter), "embedding": PARAMS["embedding"]["embedding"]}
    params = drafter.with_target_params(params["own"], PARAMS)
    codes = jax.random.randint(jax.random.key(1), (rows, 16), 0, TARGET.vocab_size)
    labels, null = jnp.array([0, 2]), jnp.zeros(rows, bool)
    known = jnp.pad(codes, ((0, 0), (1, 0)))
    before = run_teacher(TARGET, PARAMS, drafter.feature_layers, codes, labels, null)
    # Tokens as the prompt, by position, so that heads know what followed each feature.
    start = InitContext(known, before.features, jnp.full(rows, root), tree, rows, 8)
    state = drafter.init(params, start)
    ctx = DraftContext(
        known[:, root],
        codes,
        jnp.full(rows, root),
        jnp.full(rows, root),
        jnp.zeros((rows, 5, TARGET.vocab_size)),
        batch_keys(0, rows),
        make_sampling(rows),
        tree,
        selection="top",
        order=("temperature",),
    )
    draft, _ = drafter.propose(params, state, ctx)
    # From here on the data say what was drafted; what was read does not change.
    codes = codes.at[:, root : root + 4].set(draft.tokens[:, 1:])
    lesson = run_teacher(TARGET, PARAMS, drafter.feature_layers, codes, labels, null)
    at = root if kind.startswith("block") else root - 1
    monkeypatch.setattr(jax.random, "randint", lambda *a, **k: jnp.full((rows, 1), at))
    told = lambda *a, **k: jnp.ones((rows, 1), bool)  # noqa: E731
    monkeypatch.setattr(jax.random, "bernoulli", told)
    monkeypatch.setattr("jaxspec.train.recipes.block_diffusion.ANCHORS", 1)
    guesses = recipe_of(drafter)(drafter, params["own"], lesson, jax.random.key(0))
    assert (guesses.places[:, 0, :4] == root + 1 + jnp.arange(4)).all()
    found = jax.nn.log_softmax(guesses.logits[:, 0, :4])
    np.testing.assert_allclose(found, draft.log_q, atol=1e-4)
    assert (guesses.confidence is None) == (draft.confidence is None)
    if guesses.confidence is not None:
        chance = jax.nn.sigmoid(guesses.confidence[:, 0, :4])
        np.testing.assert_allclose(chance, draft.confidence[:, 1:], atol=1e-5)
        assert np.ptp(chance) > 1e-3


def test_the_adapter_is_trained_on_what_it_drafts():
    """Each guess is what the same model says with its cache, one token at a time."""
    drafter, rows = KINDS["kangaroo"], 2
    own = drafter.init_params(jax.random.key(2))
    params = drafter.with_target_params(own, PARAMS)
    codes = jax.random.randint(jax.random.key(1), (rows, 16), 0, TARGET.vocab_size)
    labels, null = jnp.array([0, 2]), jnp.zeros(rows, bool)
    lesson = run_teacher(TARGET, PARAMS, drafter.feature_layers, codes, labels, null)
    guesses = recipe_of(drafter)(drafter, own, lesson, jax.random.key(4))
    model = drafter.drafter.model
    first, _, cache = model.prefill(params, labels, 16)
    both, streams = jnp.concatenate([codes] * 2), 2 * rows
    said = [first[:rows]]
    for t in range(15):
        mask = jnp.broadcast_to(
            jnp.arange(cache.capacity) <= t + 1, (streams, 1, cache.capacity)
        )
        place = jnp.full((streams, 1), t + 1)
        logits, _, cache = model.forward(params, cache, both[:, t : t + 1], place, mask)
        cache = replace(cache, lengths=cache.lengths + 1)
        said.append(logits[:rows, 0])
    said = jnp.stack(said, axis=1)  # of token t, given those before
    wanted = jnp.take_along_axis(said, guesses.places - 1, axis=1)
    np.testing.assert_allclose(guesses.logits[:, :, 0], wanted, atol=1e-4)


def test_prompt_tokens_are_trained_on_what_rides_along():
    """A guess is what one pass over the tokens and the prompt tokens says."""
    drafter, rows = KINDS["prompt tokens"], 2
    own = drafter.init_params(jax.random.key(2))
    codes = jax.random.randint(jax.random.key(1), (rows, 16), 0, TARGET.vocab_size)
    labels, null = jnp.array([0, 2]), jnp.array([False, True])
    lesson = run_teacher(TARGET, PARAMS, (), codes, labels, null)
    guesses = recipe_of(drafter)(drafter, own, lesson, jax.random.key(4))
    model, wide = Transformer(drafter.widened), drafter.target_params(own, PARAMS)
    ids = TARGET.vocab_size + jnp.arange(4)
    for block in (0, 7):
        place = int(guesses.places[0, block, 0]) - 2  # of the last token that is seen
        tokens = jnp.concatenate(
            [codes[:, :place], jnp.broadcast_to(ids, (rows, 4))], axis=1
        )
        logits, _ = model.score(wide, labels, tokens, null=null)
        np.testing.assert_allclose(guesses.logits[:, block], logits[:, -4:], atol=1e-4)


def test_divergences_are_what_they_are_called():
    p, q = jax.random.normal(jax.random.key(0), (2, 3, 4, 7))
    tokens = jax.random.randint(jax.random.key(1), (3, 4), 0, 7)
    present = jnp.ones((3, 4), bool)
    a, b = np.asarray(jax.nn.softmax(p)), np.asarray(jax.nn.softmax(q))
    wanted = {
        "cross_entropy": -np.log(np.take_along_axis(b, tokens[..., None], -1)[..., 0]),
        "forward_kl": -(a * np.log(b)).sum(-1),
        "reverse_kl": (b * np.log(b / a)).sum(-1),
        "tvd": np.abs(a - b).sum(-1) / 2,
    }
    for name, value in wanted.items():
        found = divergence(name, p, q, tokens, present)
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(overlap(p, q), 1 - wanted["tvd"], rtol=1e-5)


def test_tvd_plus_moves_along_a_whitened_gradient_of_tvd():
    """One guess: the reward's mean shifts nothing, its spread scales all."""
    p, q = jax.random.normal(jax.random.key(0), (2, 1, 7))
    tokens, present = jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    plain, whitened = (
        jax.grad(lambda q, n=name: divergence(n, p, q, tokens, present).sum())(q)
        for name in ("tvd", "tvd++")
    )
    ratio = np.asarray(whitened / plain)
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    assert ratio[0, 0] > 1


# Learning on a toy target, from what the target itself draws.

SLOW = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("eagle-1", "eagle-3", "block", "hydra++", "kangaroo", "falcon")
]
LEARNED = ["medusa", *SLOW]
SHARP = {**PARAMS, "head": 4.0 * PARAMS["head"]}


@pytest.fixture(scope="module")
def drawn():
    """Codes that the target draws by itself, with their classes."""
    rows = 256
    labels = jnp.arange(rows) % 3
    target = make_target(Transformer(TARGET), guided=False)
    run = jax.jit(partial(generate, Engine(target, 16, order=("temperature",))))
    keys = batch_keys(0, rows)
    return run(SHARP, None, labels, make_sampling(rows), keys).tokens, labels


def learned(kind, drawn):
    """Overlap by place before and after training, on sequences held out."""
    drafter = KINDS[kind]
    codes, labels = drawn
    config = DrafterTrainingConfig(
        steps=150, batch=32, learning_rate=3e-3, warmup=5, ema=0.9, null_share=0.0
    )

    @jax.jit
    def accepted(own, key):
        shared = drafter_losses(
            drafter, config, own, SHARP, codes[224:], labels[224:], key
        )[1]
        return jnp.nanmean(shared, axis=(0, 1))

    step = make_step(drafter, config, {})

    def body(state, i):
        rows = jax.random.randint(jax.random.fold_in(KEY, i), (32,), 0, 224)
        return step(state, SHARP, i, (codes[rows], labels[rows], None))[0], None

    own = drafter.init_params(jax.random.key(5))
    run = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(config.steps))[0])
    return accepted(own, KEY), accepted(run(begin(config, own))["average"], KEY)


@pytest.mark.slow
def test_prompt_tokens_learn_to_look_ahead(drawn):
    """They read no features: what they know is what the target itself has read."""
    before, after = learned("prompt tokens", drawn)
    assert (after > before + 0.03).all(), (before, after)


@pytest.mark.parametrize("kind", LEARNED)
def test_a_drafter_learns_from_its_targets_features(kind, drawn, monkeypatch):
    before, after = learned(kind, drawn)
    shuffled = lessons.Transformer

    class Shuffled(shuffled):
        """The control: features of another sequence."""

        def score(self, *arguments, **options):
            logits, features = super().score(*arguments, **options)
            return logits, jnp.roll(features, 1, axis=0)

    monkeypatch.setattr(lessons, "Transformer", Shuffled)
    _, control = learned(kind, drawn)
    assert after[0] > 1.3 * before[0], (before, after)
    assert after[0] > control[0] + 0.03, (control, after)


KEY = jax.random.key(11)


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["block", "eagle-3", "medusa"])
def test_what_is_kept_of_the_target_teaches_the_same(kind, cfg_scale, tmp_path):
    """Mirrored sequences too; a second run finds what the first one kept."""
    drafter, labels = KINDS[kind], np.arange(5, dtype=np.int32) % 3
    codes = np.random.default_rng(0).integers(19, size=(2, 5, 16)).astype(np.uint16)
    source, prior = CodeSource(codes, labels, ""), Checkpoint("prior", TARGET, PARAMS)
    options = dict(dtype="float32", cache_dir=tmp_path, batch=4)
    kept = keep_features(prior, drafter.feature_layers, source, **options)
    [file] = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = keep_features(prior, drafter.feature_layers, source, **options)
    assert file.stat().st_mtime_ns == written
    np.testing.assert_array_equal(kept, again)
    rows = np.array([7, 0, 4])  # the first is mirrored
    given = source.at(rows)
    np.testing.assert_array_equal(given[0][0], codes[1, 2])
    config = DrafterTrainingConfig(1, 3, cfg_scale=cfg_scale, null_share=0.5)
    told = drafter, config, drafter.init_params(KEY), PARAMS, *given, KEY
    fresh = drafter_losses(*told)
    for a, b in zip(fresh, drafter_losses(*told, np.asarray(kept[rows])), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    wrong = drafter_losses(*told, np.asarray(kept[rows - 1]))[0]
    assert np.nanmax(np.abs(wrong - fresh[0])) > 0.01


def test_text_that_is_cut_anew_is_not_kept(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be " * 20)
    source = TextSource(tmp_path / "a.txt", 16, heldout=False)
    with pytest.raises(ConfigError, match="set cached='no'"):
        prior = Checkpoint("prior", TARGET, PARAMS)
        keep_features(prior, (0,), source, dtype="float32", cache_dir=tmp_path)
