"""Recorded log-probabilities against a teacher-forced pass over the same tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Rejection
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target

VOCAB, LENGTH, BATCH = 7, 12, 3
TARGET, PARAMS = toy_target(VOCAB, 2), toy_params(VOCAB, 40)
PROMPT = jnp.array([[1, 2, -1], [3, -1, -1], [4, 5, 6]])
SAMPLING = Sampling.create(
    BATCH, temperature=[1.0, 0.0, 0.7], cfg_scale=[2.0, 1.0, 0.5], top_k=[0, 0, 4]
)
STOPPING = StoppingCriteria.create(BATCH, max_new_tokens=[LENGTH, 5, LENGTH])
RELATED = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (VOCAB, 2)))
TREE = Tree.named("0,1,2,00,01,000")
TABLE = {"table": jax.random.normal(jax.random.key(1), (TREE.depth, VOCAB, VOCAB))}
ENGINES = {
    "coupled": {"drafter": TableDrafter(), "tree": TREE},
    "plain": {},
    "rejection": {"drafter": TableDrafter(), "tree": TREE, "verifier": Rejection()},
}


def generate(name, log_probs):
    engine = Engine(TARGET, LENGTH, **ENGINES[name], log_probs=log_probs)
    drafter = TABLE if engine.drafter else None
    return jax.jit(engine.generate)(
        engine.variables(
            PARAMS, drafter, related_tokens=None if log_probs is None else RELATED
        ),
        PROMPT,
        sampling=SAMPLING,
        keys=batch_keys(3, BATCH),
        stopping=STOPPING,
    )


def teacher_forced(tokens, log_probs):
    """Log-probabilities of all tokens at each index, by passes without a cache."""
    tables = []
    for i in range(LENGTH):
        index = jnp.full(BATCH, i)
        logits = TARGET.rescore(PARAMS, PROMPT, jnp.maximum(tokens, 0), index)
        logits = apply_cfg(logits, SAMPLING, index)
        if log_probs == "sampling":
            logits = process_logits(logits, SAMPLING)
        tables.append(jax.nn.log_softmax(logits))
    return np.stack(tables, axis=1)  # [B, T, V]


@pytest.mark.variants(1)
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("log_probs", ["model", "sampling"])
def test_recorded_log_probs_are_those_of_a_teacher_forced_pass(name, log_probs):
    out = generate(name, log_probs)
    table = teacher_forced(out.tokens, log_probs)
    tokens = np.maximum(out.tokens, 0)
    expected = np.take_along_axis(table, tokens[..., None], axis=2)[..., 0]
    related = np.take_along_axis(table, np.asarray(RELATED)[tokens], axis=2)
    exists = np.arange(LENGTH) < np.asarray(out.lengths)[:, None]
    assert exists.sum() == LENGTH + 5 + LENGTH
    np.testing.assert_allclose(
        out.log_probs.tokens, np.where(exists, expected, 0.0), atol=1e-4
    )
    np.testing.assert_allclose(
        out.log_probs.related, np.where(exists[..., None], related, 0.0), atol=1e-4
    )
    # The control: log-probabilities one position later differ.
    shifted = np.roll(np.where(exists, expected, 0.0), 1, axis=1)
    assert np.abs(out.log_probs.tokens - shifted).max() > 0.5


@pytest.mark.slow
def test_recording_changes_no_token_and_is_off_by_default():
    recorded, default = generate("coupled", "model"), generate("coupled", None)
    np.testing.assert_array_equal(recorded.tokens, default.tokens)
    assert default.log_probs is None


def test_related_tokens_need_one_entry_for_each_token():
    engine = Engine(TARGET, LENGTH, log_probs="model")
    for wrong in (RELATED[:-1], RELATED[:, 0], RELATED * 1.0):
        with pytest.raises(ConfigError, match="give ints"):
            engine.variables(PARAMS, related_tokens=wrong)
    with pytest.raises(ConfigError, match="recorded with Engine"):
        Engine(TARGET, LENGTH).variables(PARAMS, related_tokens=RELATED)


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ConfigError, match="choose 'model', 'sampling' or None"):
        Engine(TARGET, LENGTH, verifier=Coupled(), log_probs="raw")  # type: ignore
