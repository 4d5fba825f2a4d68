"""Distribution of the first three tokens of the toy target, exact and counted."""

from itertools import product

import jax.numpy as jnp
import numpy as np

from jaxspec.testing.toy import toy_target


def exact_distribution(params, temperature=1.0, top_k=0, top_p=1.0):
    """Probabilities `[V, V, V]` after prompt 0, from sorted float64 probabilities."""
    vocab = params["head"].shape[-1]
    target, distribution = toy_target(vocab), np.ones(())
    for d in range(3):
        tokens = np.array(list(product(range(vocab), repeat=d)), int)
        tokens = np.pad(tokens.reshape(vocab**d, d), ((0, 0), (0, 3 - d)))
        zeros = jnp.zeros(len(tokens), jnp.int32)
        logits = target.rescore(params, zeros, jnp.asarray(tokens), zeros + d)
        heated = np.asarray(logits, np.float64) / temperature
        p = np.exp(heated - heated.max(-1, keepdims=True))
        for row in p:
            ranked = np.argsort(-row)
            row[ranked[top_k or vocab :]] = 0
            mass = np.cumsum(row[ranked]) / row.sum()
            row[ranked[np.searchsorted(mass, top_p) + 1 :]] = 0
        p = p / p.sum(-1, keepdims=True)
        distribution = distribution[..., None] * p.reshape((vocab,) * (d + 1))
    return distribution


def misfit(tokens, distribution):
    """Chi-square statistic in units of its standard deviation above its mean."""
    rows = len(tokens)
    counts = np.zeros_like(distribution)
    np.add.at(counts, tuple(tokens[:, :3].T), 1)
    if counts[distribution == 0].any():
        return np.inf
    wanted, counts = rows * distribution[distribution > 0], counts[distribution > 0]
    rare = wanted < 5  # together one cell: chi-square is for counts like these or more
    wanted = np.append(wanted[~rare], wanted[rare].sum() or 1.0)
    counts = np.append(counts[~rare], counts[rare].sum() if rare.any() else 1.0)
    statistic = ((counts - wanted) ** 2 / wanted).sum()
    freedom = len(wanted) - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)
