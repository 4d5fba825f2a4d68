"""Distribution of the emitted token at one position, and its distance to the target."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from docs.studies.relaxation.drafts import Drafts
from docs.studies.relaxation.positions import Position
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, CoupledRelaxed
from jaxspec.speculative.verify.relaxed_set import relaxed_set

_BLOCK = 512  # drafts whose outcomes are computed at once


@dataclass(frozen=True)
class PositionOutcome:
    """Outcome of verification at one position, over the distribution of drafts.

    Attributes:
      output: Distribution of the emitted token, float64 [V].
      acceptance: Probability that a drafted child is accepted.
      shift: Mean distance between the codebook entries of the emitted token and of the
        exact sample, an upper bound of the Wasserstein-1 distance to the target; None
        for verifiers without an exact sample.
    """

    output: np.ndarray
    acceptance: float
    shift: float | None


def independent_outcome(
    verifier: Any, position: Position, drafts: Drafts
) -> PositionOutcome:
    """Outcome for children that are independent of the target's noise.

    Args:
      verifier: Verifier with a method `outcome`.
      position: Position.
      drafts: Children sampled from `q` without replacement.
    """
    amounts = _amounts(verifier)
    # Equal for all amounts, so that a sweep over them compiles once.
    template = replace(verifier, **dict.fromkeys(amounts, 1.0))
    tokens, probs = drafts.tokens, drafts.probs
    size = min(_BLOCK, len(tokens))
    padding = -len(tokens) % size
    tokens = np.concatenate([tokens, tokens[:padding]])
    probs = np.concatenate([probs, np.zeros(padding)])
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(position.p), np.log(position.q)
    output, rejected = _mean_outcome(
        template,
        {k: jnp.float32(v) for k, v in amounts.items()},
        jnp.asarray(log_p, jnp.float32),
        jnp.asarray(log_q, jnp.float32),
        jnp.asarray(tokens.reshape(-1, size, tokens.shape[1])),
        jnp.asarray(probs.reshape(-1, size), jnp.float32),
        {"neighbors": position.neighbors},
    )
    shift = None
    if isinstance(verifier, CoupledRelaxed):
        distances = acceptance_distances(verifier, position)
        nearest = distances[drafts.tokens[:, 0]]
        for rank in range(1, drafts.tokens.shape[1]):
            nearest = np.minimum(nearest, distances[drafts.tokens[:, rank]])
        mean_shifts = np.where(np.isfinite(nearest), nearest, 0.0) @ position.p
        shift = float(drafts.probs @ mean_shifts)
    return PositionOutcome(np.asarray(output, np.float64), 1.0 - float(rejected), shift)


def coupled_outcome(
    verifier: Coupled | CoupledRelaxed, position: Position, drafts: Drafts
) -> PositionOutcome:
    """Outcome for children that were ranked with the target's noise.

    Args:
      verifier: Coupled verifier.
      position: Position.
      drafts: Children with the target's sample, from `coupled_drafts`.
    """
    assert drafts.sample is not None
    distances = acceptance_distances(verifier, position)
    distances = distances[drafts.tokens, drafts.sample[:, None]]
    best, nearest = distances.argmin(axis=1), distances.min(axis=1)
    accepted = np.isfinite(nearest)
    child = np.take_along_axis(drafts.tokens, best[:, None], axis=1)[:, 0]
    emitted = np.where(accepted, child, drafts.sample)
    output = np.bincount(emitted, drafts.probs, len(position.p))
    shift = float(drafts.probs @ np.where(accepted, nearest, 0.0))
    return PositionOutcome(output, float(drafts.probs @ accepted), shift)


def acceptance_distances(
    verifier: Coupled | CoupledRelaxed, position: Position
) -> np.ndarray:
    """Distance from each child `x` to each sample `y` for which it is accepted.

    Float32 `[V, V]`, children first; infinite where the child is rejected. `Coupled`
    accepts a child only if it equals the sample.
    """
    size = len(position.p)
    result = np.full((size, size), np.inf, np.float32)
    if isinstance(verifier, CoupledRelaxed):
        ids = np.asarray(position.neighbors.ids)[:, : verifier.k]
        distances = np.asarray(position.neighbors.distances)[:, : verifier.k]
        p = jnp.asarray(position.p, jnp.float32)
        *_, in_set = relaxed_set(
            position.neighbors,
            lambda x: p[x],
            jnp.arange(size),
            verifier.k,
            verifier.budget,
            verifier.lam,
        )
        in_set = np.asarray(in_set) & (distances <= verifier.radius)
        np.put_along_axis(result, ids, np.where(in_set, distances, np.inf), axis=1)
    np.fill_diagonal(result, 0.0)
    return result


def _amounts(verifier: Any) -> dict[str, float]:
    """Numeric settings of a verifier that may be traced arrays."""
    names = ("delta", "budget", "lam", "radius")
    values = {name: getattr(verifier, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


@partial(jax.jit, static_argnums=0)
def _mean_outcome(template, amounts, log_p, log_q, tokens, probs, params):
    """Mean outcome over blocks of drafts.

    Args:
      template: Verifier whose amounts are replaced.
      amounts: Numeric settings of the verifier, traced.
      log_p: Target's log-probabilities [V].
      log_q: Drafter's log-probabilities [V].
      tokens: Children of the drafts, int32 [blocks, drafts, W].
      probs: Probabilities of the drafts [blocks, drafts].
      params: Parameters of the verifier.

    Returns:
      Distribution of the emitted token [V], and the probability that every child is
      rejected.
    """
    verifier = replace(template, **amounts)
    children, vocab_size = tokens.shape[-1], log_p.shape[0]
    tree = Tree.from_paths([(rank,) for rank in range(children)])

    def add_block(total, block):
        tokens, probs = block
        count = len(probs)
        draft = Draft(
            jnp.pad(tokens, ((0, 0), (1, 0))),
            jnp.ones((count, tree.size), bool),
            log_q=jnp.broadcast_to(log_q, (count, 1, vocab_size)),
            selection="without_replacement",
        )
        log_probs = jnp.broadcast_to(log_p, (count, tree.size, vocab_size))
        outcome = verifier.outcome(log_probs, draft, tree, params=params)
        stop = outcome.stop * probs[:, None]
        output = stop[:, 0] @ outcome.final[:, 0]
        output = output.at[tokens].add(stop[:, 1:])
        return (total[0] + output, total[1] + jnp.sum(stop[:, 0])), None

    start = jnp.zeros(vocab_size), jnp.zeros(())
    return jax.lax.scan(add_block, start, (tokens, probs))[0]


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Total variation distance between two distributions `[V]`."""
    return float(np.abs(a - b).sum() / 2)


def wasserstein(a: np.ndarray, b: np.ndarray, codebook: np.ndarray) -> float:
    """Euclidean Wasserstein-1 distance between distributions over a codebook.

    Probability mass that both share stays in place, which is optimal for any metric, so
    only the differences are transported. The linear program is Kantorovich's dual,
    which stays feasible for tiny differences: maximize `f . surplus - g . deficit` with
    `f_i - g_j` at most the distance.

    Args:
      a: Distribution [V].
      b: Distribution [V].
      codebook: Codebook entries [V, C].
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, hstack, kron

    surplus, deficit = np.flatnonzero(a > b), np.flatnonzero(b > a)
    mass = total_variation(a, b)
    if not (len(surplus) and len(deficit)):
        return 0.0
    cost = np.linalg.norm(codebook[surplus, None] - codebook[deficit], axis=-1)
    supply, demand = (a - b)[surplus], (b - a)[deficit]
    first = kron(eye_array(len(surplus)), np.ones((len(deficit), 1)))
    second = kron(np.ones((len(surplus), 1)), eye_array(len(deficit)))
    free = [(None, None)] * (len(surplus) + len(deficit) - 1)
    solution = linprog(
        np.concatenate([-supply / supply.sum(), demand / demand.sum()]),
        A_ub=hstack([first, -second]).tocsr(),
        b_ub=cost.ravel(),
        bounds=[*free, (0.0, 0.0)],  # a constant in all potentials changes nothing
    )
    return float(-solution.fun * mass)
