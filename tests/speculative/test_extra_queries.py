"""Extra queries of a drafter in the verify pass."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import ExtraQueries
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import WIDTH, toy_params, toy_target

VOCAB, LENGTH = 5, 12
PARAMS = toy_params(VOCAB, 60)
TABLE = {"table": jax.random.normal(jax.random.key(1), (4, VOCAB, VOCAB))}


@dataclass(frozen=True)
class WithExtraQueries(TableDrafter):
    """Adds two queries: one attends to nodes 0 and 1, one to nodes 0, 2 and query 0."""

    num_extra_queries: int = 2
    added: int = 2

    def init(self, params, ctx):
        rows, _, width = ctx.features.shape
        return jnp.zeros((rows, self.num_extra_queries, width))

    def propose(self, params, state, ctx):
        draft, _ = super().propose(params, (), ctx)
        rows, size = draft.tokens.shape
        mask = np.zeros((2, size + 2), bool)
        mask[0, [0, 1]] = True
        mask[1, [0, 2, size]] = True
        extra = ExtraQueries(
            tokens=jnp.stack([draft.tokens[:, 1], draft.tokens[:, 2]], axis=1),
            positions=ctx.position[:, None] + jnp.array([2, 3]),
            mask=jnp.broadcast_to(mask, (rows, *mask.shape)),
        )
        extra = jax.tree.map(lambda x: x[:, : self.added], extra)
        if self.added < 2:
            extra = replace(extra, mask=extra.mask[:, :, : size + self.added])
        return replace(draft, extra=extra), state

    def observe(self, params, state, result):
        return result.extra


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("branches", "tree"), [(2, Tree.named("0,1,00")), (1, Beam(4, 2, 3, 2))]
)
def test_extra_queries_return_their_features_and_change_nothing(branches, tree):
    target, rows = toy_target(VOCAB, branches), 3
    prompt, keys = jnp.arange(rows), batch_keys(0, rows)
    sampling = Sampling.create(rows, cfg_scale=2.0)
    order = ("temperature",)
    plain = jax.jit(Engine(target, LENGTH, order=order).generate)(
        Variables(PARAMS), prompt, sampling=sampling, keys=keys
    )
    engine = Engine(target, LENGTH, WithExtraQueries(), tree, order=order)
    variables = Variables(PARAMS, TABLE)
    state = jax.jit(engine.init)(variables, prompt, sampling=sampling, keys=keys)
    step = jax.jit(engine.step)
    for _ in range(4):
        before, state = state, step(variables, state)
    for b in range(rows):
        done = int(state.length[b])
        np.testing.assert_array_equal(state.tokens[b, :done], plain.tokens[b, :done])

    # Features of the toy target: the sum over all positions that a query attends to.
    lengths = before.cache.lengths + jnp.concatenate([before.counts] * branches)
    size = tree.size
    for r in range(rows * branches):
        own, length = state.cache.layers[0][0][r, 0], int(lengths[r])
        past = own[:length].sum(0)
        window = own[length : length + size + 2]
        first = past + window[0] + window[1] + window[size]
        second = past + window[0] + window[2] + window[size] + window[size + 1]
        wanted = jnp.stack([first, second])
        np.testing.assert_allclose(state.drafter[r], wanted, rtol=1e-5)
        assert wanted.shape == (2, WIDTH)


def test_a_wrong_number_of_extra_queries_is_refused():
    engine = Engine(toy_target(VOCAB), 4, WithExtraQueries(added=1), Tree.named("0,1"))
    with pytest.raises(ConfigError, match="1 extra queries; .* is 2"):
        engine.generate(
            Variables(PARAMS, TABLE),
            jnp.zeros(1, jnp.int32),
            sampling=Sampling.create(1),
            keys=batch_keys(0, 1),
        )
