"""Distribution of the token that a verifier emits at one position."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.precision import use_x64
from jaxspec.evaluate.relaxation.amounts import join_amounts, split_amounts
from jaxspec.evaluate.relaxation.drafts import Drafts
from jaxspec.evaluate.relaxation.positions import Position
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, CoupledRelaxed
from jaxspec.speculative.verify.relaxed_set import relaxed_set

_MOST_DRAFTS, _MOST_NUMBERS = 512, 1 << 21  # of a block whose outcomes are computed


@dataclass(frozen=True)
class PositionOutcome:
    """Outcome of verification at one position, over the distribution of drafts.

    Attributes:
      output: Distribution of the emitted token, float64 [V].
      acceptance: Probability that a drafted child is accepted.
      shift: Mean distance between the codebook entries of the emitted token and of the
        exact sample, an upper bound of the Wasserstein-1 distance to the target; None
        for verifiers without an exact sample.
      acceptance_error: Standard error of `acceptance`; 0 if all drafts are listed.
      output_error: Standard errors of `output`, float64 [V].
    """

    output: np.ndarray
    acceptance: float
    shift: float | None
    acceptance_error: float
    output_error: np.ndarray

    @property
    def tv_error(self) -> float:
        """Total variation that sampling errors add to that of the verifier, at most."""
        return float(self.output_error.sum() / 2)


def independent_outcome(
    verifier: Any, position: Position, drafts: Drafts, params: Any = None
) -> PositionOutcome:
    """Outcome for children that are independent of the target's noise.

    Args:
      verifier: Verifier with a method `outcome`.
      position: Position.
      drafts: Children, from `independent_drafts`.
      params: Arrays that the verifier reads; None for the neighbors of the position.
    """
    template, amounts = split_amounts(verifier)
    tokens, probs, valid = drafts.tokens, drafts.probs, drafts.valid
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    size = max(1, min(_MOST_DRAFTS, _MOST_NUMBERS // len(position.p), len(tokens)))
    padding = -len(tokens) % size
    tokens, valid = (np.concatenate([x, x[:padding]]) for x in (tokens, valid))
    probs = np.concatenate([probs, np.zeros(padding)])
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(position.p), np.log(position.q)
    if params is None:
        params = {"neighbors": position.neighbors}
    with use_x64(True):
        mean, square, rejected = _mean_outcome(
            template,
            drafts.selection,
            {k: jnp.float64(v) for k, v in amounts.items()},
            jnp.asarray(log_p, jnp.float64),
            jnp.asarray(log_q, jnp.float64),
            jnp.asarray(tokens.reshape(-1, size, tokens.shape[1])),
            jnp.asarray(valid.reshape(-1, size, valid.shape[1])),
            jnp.asarray(probs.reshape(-1, size), jnp.float64),
            params,
        )
        mean, square, rejected = map(np.asarray, (mean, square, rejected))
    shift = None
    if isinstance(verifier, CoupledRelaxed):
        distances = acceptance_distances(verifier, position)
        nearest = np.full((len(drafts.tokens), len(position.p)), np.inf, np.float32)
        for rank in range(drafts.tokens.shape[1]):
            nearer = distances[drafts.tokens[:, rank]]
            if drafts.valid is not None:
                nearer = np.where(drafts.valid[:, rank, None], nearer, np.inf)
            nearest = np.minimum(nearest, nearer)
        mean_shifts = np.where(np.isfinite(nearest), nearest, 0.0) @ position.p
        shift = float(drafts.probs @ mean_shifts)
    count = np.inf if drafts.exact else len(drafts.tokens)
    return PositionOutcome(
        mean,
        1.0 - float(rejected[0]),
        shift,
        float(_standard_error(rejected[0], rejected[1], count)),
        _standard_error(mean, square, count),
    )


def _standard_error(mean, square, count) -> np.ndarray:
    """Standard error of a mean over `count` samples, from the mean square."""
    return np.sqrt(np.maximum(square - mean**2, 0.0) / count)


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
    if drafts.valid is not None:
        distances = np.where(drafts.valid, distances, np.inf)
    best, nearest = distances.argmin(axis=1), distances.min(axis=1)
    accepted = np.isfinite(nearest)
    child = np.take_along_axis(drafts.tokens, best[:, None], axis=1)[:, 0]
    emitted = np.where(accepted, child, drafts.sample)
    output = np.bincount(emitted, drafts.probs, len(position.p))
    acceptance = float(drafts.probs @ accepted)
    count = np.inf if drafts.exact else len(drafts.tokens)
    return PositionOutcome(
        output,
        acceptance,
        float(drafts.probs @ np.where(accepted, nearest, 0.0)),
        float(_standard_error(acceptance, acceptance, count)),
        _standard_error(output, output, count),
    )


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
    result[position.p == 0] = np.inf  # filtered children are not accepted
    return result


@partial(jax.jit, static_argnums=(0, 1))
def _mean_outcome(
    template, selection, amounts, log_p, log_q, tokens, valid, probs, params
):
    """Mean outcome over blocks of drafts.

    Args:
      template: Verifier whose amounts are replaced.
      selection: Selection of the children.
      amounts: Numeric settings of the verifier, traced.
      log_p: Target's log-probabilities [V].
      log_q: Drafter's log-probabilities [V].
      tokens: Children of the drafts, int32 [blocks, drafts, W].
      valid: Children that exist, bool [blocks, drafts, W].
      probs: Probabilities of the drafts [blocks, drafts].
      params: Parameters of the verifier.

    Returns:
      Mean distribution of the emitted token [V], its mean square [V], and both means
      [2] of the probability that every child is rejected.
    """
    verifier = join_amounts(template, amounts)
    children, vocab_size = tokens.shape[-1], log_p.shape[0]
    tree = Tree.from_paths([(rank,) for rank in range(children)])

    def add_block(total, block):
        tokens, valid, probs = block
        count = len(probs)
        draft = Draft(
            jnp.pad(tokens, ((0, 0), (1, 0))),
            jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True),
            log_q=jnp.broadcast_to(log_q, (count, 1, vocab_size)),
            selection=selection,
        )
        log_probs = jnp.broadcast_to(log_p, (count, tree.size, vocab_size))
        outcome = verifier.outcome(log_probs, draft, tree, params=params)
        rejected = outcome.stop[:, 0]
        output = rejected[:, None] * outcome.final[:, 0]
        output = output.at[jnp.arange(count)[:, None], tokens].add(outcome.stop[:, 1:])
        return (
            total[0] + probs @ output,
            total[1] + probs @ output**2,
            total[2] + probs @ jnp.stack([rejected, rejected**2], axis=1),
        ), None

    start = jnp.zeros(vocab_size), jnp.zeros(vocab_size), jnp.zeros(2)
    return jax.lax.scan(add_block, start, (tokens, valid, probs))[0]
