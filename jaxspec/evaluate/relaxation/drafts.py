"""Draft tokens for one node, enumerated with their probabilities or sampled."""

from dataclasses import dataclass

import numpy as np

from jaxspec.speculative.draft import Selection
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.drafts import Conditionals, all_drafts

Seed = int | tuple[int, ...]
# Most drafts of several children that are enumerated instead of sampled, and most pairs
# of a coupled child and the target's sample.
ENUMERATED, ENUMERATED_PAIRS = 1 << 12, 1 << 24


@dataclass(frozen=True)
class Drafts:
    """Possible children of one node.

    Attributes:
      tokens: Tokens of the children of each of M drafts, int32 [M, W].
      probs: Probability of each draft, float64 [M]; sums to 1.
      sample: Target's sample under the noise that ranked the children, int32 [M]; None
        for children that are independent of it.
      selection: Selection of the children; "coupled" for children whose noise the
        verifier does not read is the same as "without_replacement".
      exact: Whether all possible drafts are listed; False for samples.
      valid: Children that exist, bool [M, W]; None for all. With fewer possible tokens
        than children some do not.
    """

    tokens: np.ndarray
    probs: np.ndarray
    sample: np.ndarray | None = None
    selection: Selection = "without_replacement"
    exact: bool = True
    valid: np.ndarray | None = None


def independent_drafts(
    q: np.ndarray,
    children: int,
    count: int,
    seed: Seed = 0,
    selection: Selection = "without_replacement",
) -> Drafts:
    """Selects children by `q` alone; enumerates them if there are few drafts.

    A single child is always enumerated, and so are the likeliest children. Otherwise
    samples invert the cumulative probabilities at randomly shifted Sobol points. Each
    draft has the right distribution, and means over drafts have less variance than
    those of independent samples.

    Args:
      q: Drafter's probabilities [V].
      children: Number of children `W`, at most `V`.
      count: Number of sampled drafts, a power of 2.
      seed: Random seed.
      selection: Selection of the children.
    """
    if selection == "top":
        tokens = np.argsort(-q, kind="stable")[None, :children].astype(np.int32)
        valid = q[tokens] > 0
        return Drafts(tokens, np.ones(1), selection=selection, valid=valid)
    if children == 1:
        tokens = np.flatnonzero(q > 0).astype(np.int32)
        return Drafts(tokens[:, None], q[tokens], selection=selection)
    if len(q) ** children <= ENUMERATED:
        siblings = Tree.from_paths([(rank,) for rank in range(children)])
        drafts = all_drafts(Conditionals((q,)), siblings, selection)
        possible = drafts.chance > 0
        tokens = np.asarray(drafts.draft.tokens)[possible, 1:]
        valid = np.asarray(drafts.draft.valid)[possible, 1:]
        return Drafts(tokens, drafts.chance[possible], selection=selection, valid=valid)
    from scipy.stats.qmc import Sobol

    shift = np.random.default_rng(seed).random(children)
    points = (Sobol(children, scramble=False).random(count) + shift) % 1.0
    remaining, tokens, index = np.tile(q, (count, 1)), [], np.arange(count)
    valid = np.ones((count, children), bool)
    for rank in range(children):
        if selection == "top_and_sample" and rank < children - 1:
            tokens.append(remaining.argmax(axis=1))
        else:
            cumulative = np.cumsum(remaining, axis=1)
            threshold = points[:, rank, None] * cumulative[:, -1:] * (1 - 1e-12)
            sampled = (cumulative <= threshold).sum(axis=1)
            tokens.append(np.minimum(sampled, len(q) - 1))
        valid[:, rank] = remaining[index, tokens[-1]] > 0
        if selection != "with_replacement":
            remaining[index, tokens[-1]] = 0.0
    return Drafts(
        np.stack(tokens, 1).astype(np.int32),
        np.full(count, 1 / count),
        selection=selection,
        exact=False,
        valid=valid,
    )


def coupled_drafts(
    p: np.ndarray, q: np.ndarray, children: int, count: int, seed: Seed = 0
) -> Drafts:
    """Top children by `log q + noise`, with the target's sample under the same noise.

    A single child is enumerated jointly with the sample, if there are not too many
    tokens; more are simulated. Gumbel noise is sampled as exponential clocks: the
    argmax of `log q + Gumbel` is the argmin of `clock / q`.

    Args:
      p: Target's probabilities [V].
      q: Drafter's probabilities [V].
      children: Number of children `W`.
      count: Number of sampled drafts.
      seed: Random seed.
    """
    size = len(p)
    if children == 1 and size * size <= ENUMERATED_PAIRS:
        sample, token = np.divmod(np.arange(size * size, dtype=np.int32), size)
        pairs = coupled_pairs(p, q).ravel()
        return Drafts(token[:, None], pairs, sample, "coupled")
    rng, samples = np.random.default_rng(seed), []
    tokens, valid = [], []
    with np.errstate(divide="ignore"):
        inverse_p, inverse_q = 1 / p, 1 / q
    for start in range(0, count, 1024):
        clocks = rng.standard_exponential((min(1024, count - start), size))
        samples.append((clocks * inverse_p).argmin(axis=1))
        clocks *= inverse_q
        index = np.arange(len(clocks))
        ranked, finite = [], []
        for _ in range(children):
            ranked.append(clocks.argmin(axis=1))
            finite.append(np.isfinite(clocks[index, ranked[-1]]))
            clocks[index, ranked[-1]] = np.inf
        tokens.append(np.stack(ranked, axis=1))
        valid.append(np.stack(finite, axis=1))
    return Drafts(
        np.concatenate(tokens).astype(np.int32),
        np.full(count, 1 / count),
        np.concatenate(samples).astype(np.int32),
        "coupled",
        exact=False,
        valid=np.concatenate(valid),
    )


def coupled_pairs(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Joint distribution [V, V] of samples `(y, x)` of `p` and `q` with shared noise.

    Exact. In terms of exponential clocks, `y` is the argmin of `clock / p` and `x` that
    of `clock / q`, so a pair constrains `clock_x / clock_y` to an interval. Integrating
    out the clocks gives, with `B(r) = sum max(p, r q)`, the integral of
    `p_y q_x / B(r)^2` from `p_x / q_x` to `p_y / q_y`, and `p_y / B(p_y / q_y)` for
    `y = x`. `B` is linear between the ratios, so the integral is a sum.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.where(p > 0, p / q, 0.0)
    order = np.argsort(odds)
    sorted_odds, finite = odds[order], np.isfinite(odds[order])
    r = np.where(finite, sorted_odds, 0.0)
    above = np.append(np.cumsum(p[order][::-1])[::-1][1:], 0.0)
    slope = np.cumsum(q[order])
    b = above + r * slope
    last = int(finite.sum()) - 1
    integral = np.zeros(len(p))
    integral[1 : last + 1] = np.cumsum(
        np.diff(r[: last + 1]) / (b[:last] * b[1 : last + 1])
    )
    integral[last + 1 :] = integral[last] + 1 / (b[last] * slope[last])
    area, b_at_odds = np.empty(len(p)), np.empty(len(p))
    area[order] = integral
    b_at_odds[order] = np.where(finite, b, np.inf)
    pairs = p[:, None] * q * np.maximum(area[:, None] - area, 0.0)
    np.fill_diagonal(pairs, p / b_at_odds)
    return pairs
