"""Whole rounds of a tiny engine, as plain numbers.

`python -m tests.speculative.verify.replays` writes `replays.json`; use it only if a
change is meant to alter rounds, and give the reason.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Coupled, Lantern, Rejection
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target

FILE = Path(__file__).with_suffix(".json")
ROWS, VOCAB, LENGTH = 3, 7, 10
BUSHY = Tree.named("0,1,00,01,10")
CASES = {
    "coupled, static tree": (Coupled(), BUSHY),
    "coupled, layered beam": (Coupled(), Beam(6, 2, 4, 3)),
    "rejection, stochastic beam": (Rejection(), StochasticBeam(2, 2)),
    "block, chain": (Block(), Tree.chain(3)),
    "lantern, static tree": (
        Lantern(2, delta=0.2, fallback="uniform", filtered="published"),
        BUSHY,
    ),
}


@dataclass(frozen=True)
class Recording(TableDrafter):
    """Keeps its last draft and the result of the round."""

    def init(self, params, ctx):
        """Empty state."""
        return None

    def propose(self, params, state, ctx):
        """Draft, which is also the state."""
        draft, _ = super().propose(params, (), ctx)
        return draft, draft

    def observe(self, params, state, result):
        """Adds the result of the round."""
        return state, result.path, result.accepted, result.tokens, result.counts


def record(case: str) -> list[dict]:
    """All rounds of a case: drafts, paths, accepted and emitted tokens."""
    verifier, tree = CASES[case]
    keys = jax.random.split(jax.random.key(11), 2)
    params = toy_params(VOCAB, 40)
    table = {"table": 1.5 * jax.random.normal(keys[0], (3, VOCAB, VOCAB))}
    codes = jax.random.normal(keys[1], (VOCAB, 2))
    engine = Engine(toy_target(VOCAB, 2), LENGTH, Recording(), tree, verifier)
    sampling = Sampling.create(
        ROWS, temperature=[1.0, 0.7, 0.0], top_k=[0, 4, 0], cfg_scale=[1.0, 2.0, 3.0]
    )
    stopping = StoppingCriteria.create(
        ROWS, max_new_tokens=[LENGTH, 6, LENGTH], stop_tokens=[[-1], [-1], [5]]
    )
    variables = Variables(params, table, {"neighbors": neighbor_table(codes, 2)})
    state = jax.jit(engine.init)(
        variables,
        jnp.arange(ROWS),
        sampling=sampling,
        keys=batch_keys(2, ROWS),
        stopping=stopping,
    )
    step = jax.jit(engine.step)
    rounds = []
    while not bool(state.done.all()):
        state = step(variables, state)
        draft, path, accepted, tokens, counts = state.drafter
        assert isinstance(draft, Draft)
        parents = draft.topology(tree).parents
        shape = draft.tokens.shape
        kept = np.arange(path.shape[1]) <= np.asarray(accepted)[:, None]
        real = np.arange(path.shape[1]) < np.asarray(counts)[:, None]
        rounds.append(
            {
                "tokens": draft.tokens,
                "valid": draft.valid,
                "parents": np.broadcast_to(parents, shape),
                "path": np.where(kept, path, -1),
                "accepted": accepted,
                "emitted": np.where(real, tokens, -1),
                "done": state.done,
            }
        )
    return [{k: np.asarray(v).tolist() for k, v in row.items()} for row in rounds]


def main() -> None:
    """Writes the file."""
    everything = {case: record(case) for case in CASES}
    lines = [
        f"{json.dumps(case)}: [\n" + ",\n".join(json.dumps(r) for r in rounds) + "\n]"
        for case, rounds in everything.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
