"""Distances between output distributions: total variation, transport, entropy."""

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

_START = 8  # nearest tokens that the first linear program compares a token with
_MORE = 4  # violated constraints of a token that each further program adds


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Total variation distance between two distributions `[V]`."""
    return float(np.abs(a - b).sum() / 2)


def entropy(p: np.ndarray) -> float:
    """Entropy of a distribution `[V]` in nats."""
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())


def wasserstein(a: np.ndarray, b: np.ndarray, codebook: np.ndarray) -> float:
    """Euclidean Wasserstein-1 distance between distributions over a codebook.

    Probability mass that both share stays in place, which is optimal for any metric, so
    only the differences are transported. The linear program is Kantorovich's dual,
    which stays feasible for tiny differences: maximize `f . surplus - g . deficit` with
    `f_i - g_j` at most the distance. It starts with the constraints of near tokens;
    those that its solution violates are added until there are none, so the result is
    exact.

    Args:
      a: Distribution [V].
      b: Distribution [V].
      codebook: Codebook entries [V, C].
    """
    surplus, deficit = np.flatnonzero(a > b), np.flatnonzero(b > a)
    if not (len(surplus) and len(deficit)):
        return 0.0
    codes = np.asarray(codebook, np.float64)
    cost = np.linalg.norm(codes[surplus, None] - codes[deficit], axis=-1)
    supply, demand = (a - b)[surplus], (b - a)[deficit]
    objective = np.concatenate([-supply / supply.sum(), demand / demand.sum()])
    largest = cost.max()
    if largest == 0:
        return 0.0
    known = _nearest(cost, _START) | _nearest(cost.T, _START).T
    while True:
        rows, columns = np.nonzero(known)
        count = np.arange(len(rows))
        matrix = csr_array(
            (
                np.repeat([1.0, -1.0], len(rows)),
                (np.tile(count, 2), np.append(rows, len(surplus) + columns)),
            ),
            shape=(len(rows), len(objective)),
        )
        solution = linprog(
            objective, A_ub=matrix, b_ub=cost[rows, columns], bounds=(0.0, largest)
        )
        f, g = np.split(solution.x, [len(surplus)])
        slack = cost - (f[:, None] - g)
        violated = (slack < -1e-9 * largest) & ~known
        if not violated.any():
            return float(-solution.fun * total_variation(a, b))
        worst = np.where(violated, slack, np.inf)
        known |= violated & (_nearest(worst, _MORE) | _nearest(worst.T, _MORE).T)


def _nearest(cost: np.ndarray, count: int) -> np.ndarray:
    """Mask of the `count` smallest entries of each row, and of those equal to them."""
    last = min(count, cost.shape[1]) - 1
    return cost <= np.partition(cost, last, axis=1)[:, last : last + 1]
