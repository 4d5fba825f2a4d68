"""Children of one node: listed with their chances, or drawn."""

from dataclasses import dataclass

import numpy as np

Seed = int | tuple[int, ...]


@dataclass(frozen=True)
class Drafts:
    """Children of one node, drawn or listed.

    Attributes:
      tokens: int32 [n, W].
      chance: float64 [n], sums to 1.
      sample: int32 [n], the target's own sample under the noise that ranked the
        children; None where children were drawn without sight of it.
    """

    tokens: np.ndarray
    chance: np.ndarray
    sample: np.ndarray | None = None


def independent_drafts(q: np.ndarray, children: int, count: int, seed: Seed = 0) -> Drafts:
    """Children drawn from `q` without replacement; one child is listed exactly.

    More are drawn by inverting the cumulative probabilities at randomly shifted Sobol
    points: each draft has the right law, and their mean strays less than that of
    independent ones.
    """
    if children == 1:
        return Drafts(np.arange(len(q), dtype=np.int32)[:, None], q)
    from scipy.stats.qmc import Sobol

    shift = np.random.default_rng(seed).random(children)
    points = (Sobol(children, scramble=False).random(count) + shift) % 1.0
    left, tokens, row = np.tile(q, (count, 1)), [], np.arange(count)
    for r in range(children):
        below = np.cumsum(left, axis=1)
        wanted = points[:, r, None] * below[:, -1:] * (1 - 1e-12)
        tokens.append((below <= wanted).sum(axis=1))
        left[row, tokens[-1]] = 0.0
    return Drafts(np.stack(tokens, 1).astype(np.int32), np.full(count, 1 / count))


def coupled_drafts(
    p: np.ndarray, q: np.ndarray, children: int, count: int, seed: Seed = 0
) -> Drafts:
    """Children that are the best of `log q + noise`, beside the target's sample.

    One child is listed with the sample exactly; more are simulated. Noise is drawn as
    exponential clocks: the best of `log q + Gumbel` is the first of `clock / q`.
    """
    size = len(p)
    if children == 1:
        sample, token = np.divmod(np.arange(size * size, dtype=np.int32), size)
        return Drafts(token[:, None], coupled_pairs(p, q).ravel(), sample)
    rng, samples, tokens = np.random.default_rng(seed), [], []
    with np.errstate(divide="ignore"):
        slow_p, slow_q = 1 / p, 1 / q
    for start in range(0, count, 1024):
        clocks = rng.standard_exponential((min(1024, count - start), size))
        samples.append((clocks * slow_p).argmin(axis=1))
        clocks *= slow_q
        row = np.arange(len(clocks))
        first = []
        for _ in range(children):
            first.append(clocks.argmin(axis=1))
            clocks[row, first[-1]] = np.inf
        tokens.append(np.stack(first, axis=1))
    return Drafts(
        np.concatenate(tokens).astype(np.int32),
        np.full(count, 1 / count),
        np.concatenate(samples).astype(np.int32),
    )


def coupled_pairs(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Chance of each pair `(y, x)` of samples of `p` and `q` under shared noise.

    `[V, V]`, exact. With exponential clocks, `y` the first of `clock / p` and `x` of
    `clock / q`, the pair needs `clock_x / clock_y` in an interval, and integrating the
    clocks out leaves, for `B(r) = sum max(p, r q)`, the integral of `p_y q_x / B(r)^2`
    from `p_x / q_x` to `p_y / q_y`, and `p_y / B(p_y / q_y)` for `y = x`. `B` is linear
    between the ratios, so the integral is a sum.
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
    area, at = np.empty(len(p)), np.empty(len(p))
    area[order] = integral
    at[order] = np.where(finite, b, np.inf)
    pairs = p[:, None] * q * np.maximum(area[:, None] - area, 0.0)
    np.fill_diagonal(pairs, p / at)
    return pairs
