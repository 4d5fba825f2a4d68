"""Temperature and filters, in the logits of both models and of all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.logits import process_logits
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import LLAMAGEN_ORDER, Sampling
from jaxspec.drafters.tree_drafting import grow
from jaxspec.speculative.draft import DraftContext
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import BestFirst
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Rejection
from jaxspec.testing.table_drafter import TableDrafter, table_step
from jaxspec.testing.toy import toy_params, toy_target
from tests.speculative.verify.first_tokens import exact_distribution, misfit


def test_temperature_comes_before_the_filters():
    """Top-p depends on the temperature, so the order changes the distribution."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))

    def kept(order=LLAMAGEN_ORDER, **settings):
        sampling = Sampling.create(1, temperature=2.0, **settings)
        return np.isfinite(process_logits(logits, sampling, order))[0].tolist()

    # Heated: .379 .294 .208 .120, and .431 .334 .236 of the first three.
    assert kept(top_p=0.7) == [True, True, True, False]
    assert kept(("top_p", "temperature"), top_p=0.7) == [True, True, False, False]
    # Top-p is applied after top-k, to probabilities that sum to 1.
    assert kept(top_p=0.76) == [True, True, True, False]
    assert kept(top_k=3, top_p=0.76) == [True, True, False, False]


VOCAB = 6
FILTERS = dict(temperature=0.7, top_k=4, top_p=0.85)
TABLE = jax.random.normal(jax.random.key(1), (2, VOCAB, VOCAB))


@pytest.mark.slow
@pytest.mark.parametrize("tree", [Tree.named("0,1,00"), BestFirst(5, 2)], ids=str)
def test_drafter_probabilities_are_processed_as_those_of_the_target(tree):
    rows = 8
    ctx = DraftContext(
        root=jnp.arange(rows) % VOCAB,
        tokens=jnp.zeros((rows, 1), jnp.int32),
        position=jnp.zeros(rows, jnp.int32),
        index=jnp.zeros(rows, jnp.int32),
        noise=jnp.zeros((rows, 3, VOCAB)),
        keys=batch_keys(0, rows),
        sampling=Sampling.create(rows, **FILTERS),
        tree=tree,
        selection="without_replacement",
    )

    draft = jax.jit(lambda ctx: grow(ctx, table_step(TABLE))[0])(ctx)
    shape = draft.topology(tree)
    internal = np.flatnonzero((np.asarray(shape.depths) < 2).all(0))
    internal = internal if shape.internal is None else np.array(shape.internal)
    for n in internal:
        logits = TABLE[np.asarray(shape.depths[..., n]), draft.tokens[:, n]]
        own = process_logits(logits, ctx.sampling, LLAMAGEN_ORDER)
        assert (own == -jnp.inf).any()
        slot = np.broadcast_to(shape.slots[:, n], rows)
        found = np.asarray(draft.log_q)[np.arange(rows), slot]
        np.testing.assert_allclose(found, jax.nn.log_softmax(own), atol=1e-5)


@pytest.mark.variants(1)
@pytest.mark.parametrize("verifier", [Rejection(), Coupled()], ids=str)
def test_accepted_residual_and_extra_tokens_all_pass_the_same_filters(verifier):
    """With one level of drafts the third token is often the extra one after a leaf.

    The first comes from the prefill, before any draft.
    """
    rows, params = 6000, toy_params(VOCAB, 12, seed=3)
    tree = Tree.named("0,1")
    engine = Engine(toy_target(VOCAB), 3, TableDrafter(), tree, verifier)
    run = jax.jit(engine.generate)
    prompt, sampling = jnp.zeros(rows, jnp.int32), Sampling.create(rows, **FILTERS)
    out = run(
        Variables(params, {"table": TABLE}),
        prompt,
        sampling=sampling,
        keys=batch_keys(0, rows),
    )
    tokens = np.asarray(out.tokens)
    accepted = out.stats.accepted[:, 1]
    assert ((out.stats.calls == 2) & (accepted == 1)).sum() > rows / 10
    distribution = exact_distribution(params, **FILTERS)
    assert misfit(tokens, distribution) < 5
    # Controls: sequences whose third token skipped the temperature, or the filters.
    for other in (FILTERS | {"temperature": 1.0}, FILTERS | {"top_p": 1.0}):
        wrong = exact_distribution(params, **other)
        mixed = distribution.sum(-1, keepdims=True) * wrong
        mixed = mixed / np.maximum(wrong.sum(-1, keepdims=True), 1e-300)
        assert misfit(tokens, mixed) > 10
