"""The law of the emitted token at one position, and its distance to the target."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.bench.relaxation.drafts import Drafts
from jaxspec.bench.relaxation.positions import Position
from jaxspec.spec.draft import Draft
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, CoupledRelaxed
from jaxspec.spec.verify.relaxed_set import relaxed_set

_BLOCK = 512  # drafts whose laws are held at once


@dataclass(frozen=True)
class PositionOutcome:
    """What comes out at one position.

    Attributes:
      output: float64 [V], the law of the emitted token.
      acceptance: chance that it is a drafted child.
      shift: mean distance from the code that exact sampling would have drawn, a bound
        on the Wasserstein-1 distance to the target; None for rules without such a code.
    """

    output: np.ndarray
    acceptance: float
    shift: float | None


def independent_outcome(verifier: Any, position: Position, drafts: Drafts) -> PositionOutcome:
    """The outcome over drafts that were made without sight of the noise.

    Args:
      rule: anything with `law`.
      position: where.
      drafts: children as drawn from `q` without replacement.
    """
    amounts = _amounts(verifier)
    model = replace(verifier, **dict.fromkeys(amounts, 1.0))
    tokens, chance = drafts.tokens, drafts.chance
    size = min(_BLOCK, len(tokens))
    missing = -len(tokens) % size
    tokens = np.concatenate([tokens, tokens[:missing]])
    chance = np.concatenate([chance, np.zeros(missing)])
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(position.p), np.log(position.q)
    output, rejected = _outcome(
        model,
        {k: jnp.float32(v) for k, v in amounts.items()},
        jnp.asarray(log_p, jnp.float32),
        jnp.asarray(log_q, jnp.float32),
        jnp.asarray(tokens.reshape(-1, size, tokens.shape[1])),
        jnp.asarray(chance.reshape(-1, size), jnp.float32),
        {"neighbors": position.neighbors},
    )
    shift = None
    if isinstance(verifier, CoupledRelaxed):
        reach = acceptance_distances(verifier, position)
        near = reach[drafts.tokens[:, 0]]
        for r in range(1, drafts.tokens.shape[1]):
            near = np.minimum(near, reach[drafts.tokens[:, r]])
        moved = np.where(np.isfinite(near), near, 0.0) @ position.p
        shift = float(drafts.chance @ moved)
    return PositionOutcome(np.asarray(output, np.float64), 1.0 - float(rejected), shift)


def coupled_outcome(
    verifier: Coupled | CoupledRelaxed, position: Position, drafts: Drafts
) -> PositionOutcome:
    """The outcome over drafts that were ranked with the target's own noise."""
    assert drafts.sample is not None
    distance = acceptance_distances(verifier, position)[drafts.tokens, drafts.sample[:, None]]
    best, nearest = distance.argmin(axis=1), distance.min(axis=1)
    caught = np.isfinite(nearest)
    child = np.take_along_axis(drafts.tokens, best[:, None], axis=1)[:, 0]
    emitted = np.where(caught, child, drafts.sample)
    output = np.bincount(emitted, drafts.chance, len(position.p))
    shift = float(drafts.chance @ np.where(caught, nearest, 0.0))
    return PositionOutcome(output, float(drafts.chance @ caught), shift)


def acceptance_distances(verifier: Coupled | CoupledRelaxed, position: Position) -> np.ndarray:
    """Distance from each child `x` to each sample `y` it may stand for, else infinite.

    Float32 `[V, V]`, rows are children. `Coupled` lets a child stand for itself alone.
    """
    size = len(position.p)
    reach = np.full((size, size), np.inf, np.float32)
    if isinstance(verifier, CoupledRelaxed):
        ids = np.asarray(position.neighbors.ids)[:, : verifier.k]
        far = np.asarray(position.neighbors.distances)[:, : verifier.k]
        p = jnp.asarray(position.p, jnp.float32)
        everyone = jnp.arange(size)
        *_, fits = relaxed_set(
            position.neighbors,
            lambda x: p[x],
            everyone,
            verifier.k,
            verifier.budget,
            verifier.lam,
        )
        fits = np.asarray(fits) & (far <= verifier.radius)
        np.put_along_axis(reach, ids, np.where(fits, far, np.inf), axis=1)
    np.fill_diagonal(reach, 0.0)
    return reach


def _amounts(verifier: Any) -> dict[str, float]:
    """The settings of a rule that may be arrays."""
    names = ("delta", "budget", "lam", "radius")
    found = {name: getattr(verifier, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


@partial(jax.jit, static_argnums=0)
def _outcome(verifier, amounts, log_p, log_q, tokens, chance, params):
    """Outcome of the output and chance that no child is kept, over blocks of drafts.

    The amounts of a rule are arguments here, so a sweep over them is compiled once.
    """
    verifier = copy.copy(verifier)
    for name, value in amounts.items():
        object.__setattr__(verifier, name, value)  # checked when the real rule was made
    children, vocab_size = tokens.shape[-1], log_p.shape[0]
    tree = Tree.from_paths([(rank,) for rank in range(children)])

    def block(total, drafts):
        tokens, chance = drafts
        rows = len(chance)
        draft = Draft(
            jnp.pad(tokens, ((0, 0), (1, 0))),
            jnp.ones((rows, tree.size), bool),
            log_q=jnp.broadcast_to(log_q, (rows, 1, vocab_size)),
            selection="without_replacement",
        )
        scores = jnp.broadcast_to(log_p, (rows, tree.size, vocab_size))
        law = verifier.outcome(scores, draft, tree, params=params)
        stop = law.stop * chance[:, None]
        output = stop[:, 0] @ law.final[:, 0]
        output = output.at[tokens].add(stop[:, 1:])
        return (total[0] + output, total[1] + jnp.sum(stop[:, 0])), None

    start = jnp.zeros(vocab_size), jnp.zeros(())
    return jax.lax.scan(block, start, (tokens, chance))[0]


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Between two laws `[V]`."""
    return float(np.abs(a - b).sum() / 2)


def wasserstein(a: np.ndarray, b: np.ndarray, codebook: np.ndarray) -> float:
    """Wasserstein-1 between laws of codes, Euclidean, by linear programming.

    What both laws hold stays in place, as it may for any metric, so surpluses alone are
    carried to deficits. Solved as Kantorovich's dual, which is feasible however small
    they are: the highest `f . surplus - g . deficit` with `f_i - g_j` at most the
    distance.
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, hstack, kron

    more, less = np.flatnonzero(a > b), np.flatnonzero(b > a)
    moved = total_variation(a, b)
    if not (len(more) and len(less)):
        return 0.0
    cost = np.linalg.norm(codebook[more, None] - codebook[less], axis=-1)
    have, want = (a - b)[more], (b - a)[less]
    first = kron(eye_array(len(more)), np.ones((len(less), 1)))
    second = kron(np.ones((len(more), 1)), eye_array(len(less)))
    free = [(None, None)] * (len(more) + len(less) - 1)
    found = linprog(
        np.concatenate([-have / have.sum(), want / want.sum()]),
        A_ub=hstack([first, -second]).tocsr(),
        b_ub=cost.ravel(),
        bounds=[*free, (0.0, 0.0)],  # a constant in all of them changes nothing
    )
    return float(-found.fun * moved)
