"""Comparison of verifiers on next-token distributions of a target and a drafter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.evaluate.relaxation.distances import (
    entropy,
    total_variation,
    wasserstein,
)
from jaxspec.evaluate.relaxation.drafts import coupled_drafts, independent_drafts
from jaxspec.evaluate.relaxation.outcomes import (
    PositionOutcome,
    coupled_outcome,
    independent_outcome,
)
from jaxspec.evaluate.relaxation.positions import Position
from jaxspec.evaluate.relaxation.rounds import Rounds, simulate_rounds
from jaxspec.pipeline.verifiers import verifier_spec
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import (
    Coupled,
    CoupledRelaxed,
    Grouped,
    Judge,
    Lantern,
    Verifier,
)
from jaxspec.speculative.verify.neighbors import Neighbors, neighbor_table
from jaxspec.typing import Array, Float

# Largest vocabulary for which the Wasserstein distance is computed by default.
TRANSPORTED = 2048


@dataclass(frozen=True)
class VerifierComparison:
    """Acceptance and distortion of one verifier, as means over positions.

    Errors are 0 where all drafts are listed, except `tokens_error`, which is that of a
    simulation.

    Attributes:
      verifier: Name and settings, as `--verifier` reads them.
      lossless: Whether the verifier guarantees the target's distribution.
      selection: Selection of the drafted children.
      acceptance: Probability that a child of the root is accepted.
      acceptance_error: Standard error of `acceptance`.
      tokens_per_call: Mean number of tokens that a round on the tree emits.
      tokens_error: Standard error of `tokens_per_call`.
      tv: Total variation distance of the next token's distribution from the target's.
      tv_error: Largest part of `tv` that sampling errors can be expected to cause.
      w1: Wasserstein-1 distance of the two in the Euclidean metric of the codebook;
        None if it was not computed.
      shift: Mean distance between the codebook entries of the emitted token and of the
        target's sample under the same noise, an upper bound of `w1`; None for verifiers
        without such a sample.
      entropy_change: Entropy of the emitted token's distribution less that of the
        target's, in nats.
    """

    verifier: str
    lossless: bool
    selection: str
    acceptance: float
    acceptance_error: float
    tokens_per_call: float
    tokens_error: float
    tv: float
    tv_error: float
    w1: float | None
    shift: float | None
    entropy_change: float


def compare_verifiers(
    log_p: Float[Array | np.ndarray, "B V"],
    log_q: Float[Array | np.ndarray, "B V"],
    codebook: Float[Array | np.ndarray, "V C"],
    verifiers: Sequence[Verifier],
    *,
    tree: Tree | None = None,
    drafts: int = 4096,
    rounds: int = 1024,
    seed: int = 0,
    transport: bool | None = None,
    neighbors: Neighbors | None = None,
    progress: Callable[[], object] = lambda: None,
) -> list[VerifierComparison]:
    """Compares verifiers at positions with known distributions.

    The distribution of the next token is that after the drafted children of the root,
    each verifier's own selection of them. Given a draft it is exact (`outcome`). With
    one child all drafts are enumerated, coupled ones with the exact joint distribution
    of the child and the target's sample, and so are several children of few tokens;
    other drafts are sampled. A verifier without an `outcome` is sampled by its
    `verify`.

    Tokens per call are those of `rounds` simulated rounds on the whole tree, at whose
    nodes target and drafter have the same `p` and `q`, see `simulate_rounds`.

    Args:
      log_p: Processed log-probabilities of the target at `B` positions, or its logits;
        -inf for filtered tokens.
      log_q: Processed log-probabilities of the drafter, or its logits.
      codebook: Codebook entries; their Euclidean distances define near tokens.
      verifiers: Verifiers, such as `Lantern(10, lam=2.0)`.
      tree: Draft tree; None for a chain of 4 tokens.
      drafts: Number of sampled drafts of several children at each position, a power of
        2.
      rounds: Number of simulated rounds at each position.
      seed: Seed of drafts and rounds.
      transport: Whether the Wasserstein distance is computed; None for vocabularies of
        up to 2048 tokens. A linear program of 4096 tokens takes seconds.
      neighbors: Neighbor table of the codebook; None to build it.
      progress: Callback after each verifier at each position.

    Returns:
      One row for each verifier, in order.

    Raises:
      ConfigError: Shapes do not fit, a distribution has no finite score, `drafts` is no
        power of 2, or a verifier cannot be compared (`Judge`).
    """
    tree = Tree.chain(4) if tree is None else tree
    p, q = _probabilities("log_p", log_p), _probabilities("log_q", log_q)
    codes = np.asarray(codebook, np.float32)
    _check(p, q, codes, tree, drafts, verifiers)
    transport = len(codes) <= TRANSPORTED if transport is None else transport
    k = max((getattr(x, "k", 1) for x in verifiers), default=1)
    if neighbors is None or neighbors.most < k:
        neighbors = neighbor_table(codes, k)
    positions = [Position(*pair, codes, neighbors) for pair in zip(p, q, strict=True)]
    rows = []
    for verifier in verifiers:
        parts = []
        for i, position in enumerate(positions):
            parts.append(
                _measure(verifier, position, tree, drafts, rounds, seed + i, transport)
            )
            progress()
        rows.append(_mean_row(verifier, parts))
    return rows


def _measure(
    verifier: Verifier,
    position: Position,
    tree: Tree,
    drafts: int,
    rounds: int,
    seed: int,
    transport: bool,
) -> dict[str, float | None]:
    """Numbers of one verifier at one position."""
    params = _params(verifier, position)
    run = simulate_rounds(
        verifier, position.p, position.q, tree, rounds, seed=seed, params=params
    )
    children = int(np.sum(np.asarray(tree.parents)[1:] == 0))
    result = _outcome(verifier, position, children, drafts, seed, run, params)
    codes, output = position.codebook, result.output
    return {
        "acceptance": result.acceptance,
        "acceptance_error": result.acceptance_error,
        "tokens_per_call": float(run.tokens.mean()),
        "tokens_error": float(run.tokens.std() / np.sqrt(rounds)),
        "tv": total_variation(output, position.p),
        "tv_error": result.tv_error,
        "w1": wasserstein(output, position.p, codes) if transport else None,
        "shift": result.shift,
        "entropy_change": entropy(output) - entropy(position.p),
    }


def _outcome(
    verifier: Verifier,
    position: Position,
    children: int,
    drafts: int,
    seed: int,
    run: Rounds,
    params: Any,
) -> PositionOutcome:
    """Outcome at the root, computed from `outcome`, or counted in simulated rounds."""
    if isinstance(verifier, (Coupled, CoupledRelaxed)):
        sampled = coupled_drafts(position.p, position.q, children, drafts, seed)
        return coupled_outcome(verifier, position, sampled)
    if hasattr(verifier, "outcome"):
        selected = independent_drafts(
            position.q, children, drafts, seed, verifier.selection
        )
        return independent_outcome(verifier, position, selected, params)
    count = len(run.first)
    output = np.bincount(run.first, minlength=len(position.p)) / count
    accepted = float((run.tokens > 1).mean())
    return PositionOutcome(
        output,
        accepted,
        None,
        float(np.sqrt(accepted * (1 - accepted) / count)),
        np.sqrt(output * (1 - output) / count),
    )


def _mean_row(
    verifier: Verifier, parts: Sequence[dict[str, float | None]]
) -> VerifierComparison:
    """Means over positions; standard errors of the means."""
    means: dict[str, Any] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if any(value is None for value in values):
            means[name] = None
        elif name in ("acceptance_error", "tokens_error"):
            # Positions are sampled independently of each other.
            means[name] = float(np.linalg.norm(np.array(values, float)) / len(values))
        else:
            means[name] = float(np.mean(np.array(values, float)))
    return VerifierComparison(
        verifier=verifier_spec(verifier),
        lossless=verifier.lossless,
        selection=verifier.selection,
        **means,
    )


def _params(verifier: Verifier, position: Position) -> Any:
    """Arrays that a verifier reads; `Grouped` compares codebook entries here."""
    if isinstance(verifier, (Lantern, CoupledRelaxed)):
        return {"neighbors": position.neighbors}
    return {"embedding": position.codebook} if isinstance(verifier, Grouped) else {}


def _probabilities(name: str, scores: Any) -> np.ndarray:
    """Probabilities float64 [B, V] of logits or log-probabilities.

    Raises:
      ConfigError: The array is not [B, V], or a row has no finite score.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ConfigError(f"{name} has shape {list(scores.shape)}; give [B, V]")
    largest = scores.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise ConfigError(
            f"{name} has a row without a finite score, or with NaN or +inf; give "
            "log-probabilities, -inf for impossible tokens"
        )
    p = np.exp(scores - largest)
    return p / p.sum(axis=1, keepdims=True)


def _check(p, q, codes, tree, drafts, verifiers) -> None:
    """Checks that arguments fit, see `compare_verifiers`."""
    if p.shape != q.shape or codes.ndim != 2 or len(codes) != p.shape[1]:
        raise ConfigError(
            f"p {list(p.shape)}, q {list(q.shape)} and the codebook "
            f"{list(codes.shape)} do not fit; give [B, V], [B, V] and [V, C]"
        )
    if not np.isfinite(codes).all():
        raise ConfigError("the codebook holds numbers that are not finite")
    if tree.size < 2:
        raise ConfigError("the tree has no drafted node; use for example chain-4")
    if tree.width > p.shape[1]:
        raise ConfigError(
            f"the tree asks for {tree.width} children of one node, but there are only "
            f"{p.shape[1]} tokens"
        )
    if drafts < 1 or drafts.bit_count() != 1:
        raise ConfigError(f"drafts={drafts} must be a power of 2")
    for verifier in verifiers:
        if isinstance(verifier, Judge):
            raise ConfigError(
                "Judge reads hidden states of a target, which distributions alone do "
                "not have; compare other verifiers"
            )
