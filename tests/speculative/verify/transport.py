"""Optimal acceptance as a linear program."""

import numpy as np
from scipy.optimize import linprog


def transport(p, sets):
    """Greatest probability that a sample of `p` is in the draft, over all couplings."""
    routes = [(i, x) for i, tokens in enumerate(sets) for x in tokens]
    leaving = [[i == j for j, _ in routes] for i in range(len(sets))]
    arriving = [[x == y for _, y in routes] for x in range(len(p))]
    best = linprog(
        -np.ones(len(routes)),
        A_ub=np.array(leaving + arriving, float),
        b_ub=[*sets.values(), *p],
        options={
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        },
    )
    assert best.success
    return -best.fun
