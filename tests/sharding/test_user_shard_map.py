"""The engine inside a `shard_map` of the user, with `check_vma=True`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, BestFirst, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import (
    Annealed,
    Block,
    Coupled,
    CoupledRelaxed,
    GreedySet,
    Grouped,
    KSeq,
    Lantern,
    Rejection,
    Typical,
)
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.tiny import TABLES, table_params
from tests.drafters.tiny import VOCAB as V

LENGTH, ROWS = 8, 4
PARAMS = toy_params(V, 60)
TREE = Tree.named("0,1,00")
TABLE = {"table": jax.random.normal(jax.random.key(1), (3, V, V))}
CODES = jax.random.normal(jax.random.key(2), (V, 2))
VERIFIER_PARAMS = {"neighbors": neighbor_table(CODES, 3), "embedding": CODES}
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec("replica")
# Filters and tie-breaking are on: both contain loops and branches.
SAMPLING = Sampling.create(
    ROWS, temperature=[1.0, 0.0, 0.7, 2.0], top_k=4, top_p=0.9, cfg_scale=2.0
)
PROMPT = jnp.array([[1, 2, 3, 1], [4, 4, -1, -1], [0, -1, -1, -1], [5, -1, -1, -1]])
OPTIONS = {
    "sampling": SAMPLING,
    "keys": batch_keys(0, ROWS),
    "stopping": StoppingCriteria.create(
        ROWS, max_new_tokens=[8, 5, 8, 3], stop_tokens=[2]
    ),
}


def single_rounds(engine, variables, prompt, **options):
    """Tokens of a loop over `Engine.step`."""
    state = jax.lax.while_loop(
        lambda state: ~jnp.all(state.done),
        lambda state: engine.step(variables, state),
        engine.init(variables, prompt, **options),
    )
    return engine.result(state).tokens


def whole_run(engine, variables, prompt, **options):
    return engine.generate(variables, prompt, **options).tokens


VERIFIERS = {
    "coupled": (Coupled(), Beam(7, 3, 3, 3)),
    "k-seq": (KSeq(), TREE),
    "stochastic beam": (Rejection(), StochasticBeam(2, 2)),
    "best first": (Rejection(), BestFirst(5, 3)),
    "with replacement": (Rejection("with_replacement"), TREE),
    "greedy set": (GreedySet(), TREE),
    "block": (Block(), Tree.chain(3)),
    "lantern": (Lantern(3, delta=0.2), TREE),
    "relaxed": (CoupledRelaxed(3, budget=0.3), TREE),
    "grouped": (Grouped(group=3, distance=9.0, gap=0.5), TREE),
    "annealed": (Annealed(1.5), TREE),
    "typical": (Typical(), TREE),
}
FEW = ("coupled", "k-seq")


def cases():
    for name, (verifier, tree) in VERIFIERS.items():
        engine = Engine(toy_target(V, 2), LENGTH, TableDrafter(), tree, verifier)
        yield name, engine, TABLE
    for name, (drafter, tree) in TABLES.items():
        engine = Engine(toy_target(V, 2), LENGTH, drafter, tree)
        yield name, engine, table_params(name)


@pytest.mark.slow
@pytest.mark.parametrize("run", [single_rounds, whole_run])
@pytest.mark.parametrize(
    ("engine", "drafter_params"),
    [
        pytest.param(*case, id=name, marks=() if name in FEW else pytest.mark.slow)
        for name, *case in cases()
    ],
)
def test_sequences_divided_along_an_axis_of_any_name_keep_their_tokens(
    run, engine, drafter_params
):
    mesh = jax.make_mesh((2,), ("replica",), axis_types=(AxisType.Auto,))
    variables = Variables(PARAMS, drafter_params, VERIFIER_PARAMS)
    sharded = jax.shard_map(
        lambda variables, prompt, options: run(engine, variables, prompt, **options),
        mesh=mesh,
        in_specs=(REPLICATED, SHARDED, SHARDED),
        out_specs=SHARDED,
        check_vma=True,
    )
    expected = jax.jit(partial(whole_run, engine))(variables, PROMPT, **OPTIONS)
    actual = jax.jit(sharded)(variables, PROMPT, OPTIONS)
    np.testing.assert_array_equal(actual, expected)
