"""Exact output distribution of a verifier, by enumeration of all drafts.

For small vocabularies and trees nothing has to be sampled. All drafts are enumerated
with their probabilities, the verifier gives the distribution of its outcome for each
draft, and the weighted sum is the distribution of the emitted tokens. For a lossless
verifier it equals that of the target.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import batch_keys, draw_noise
from jaxspec.core.precision import use_x64
from jaxspec.errors import ConfigError
from jaxspec.testing.drafts import Conditionals, Drafts

# Largest error of an exactly computed probability.
TOLERANCE = 1e-6


def output_distribution_per_draft(
    verifier: Any, p: Conditionals, drafts: Drafts, params: Any = None
) -> np.ndarray:
    """Distribution of the next `A` tokens for each draft, float64 `[B, V**A]`.

    A round emits a path and one more token. If these are fewer than `A` tokens, the
    sequence is continued with the distribution of the target.

    Args:
      verifier: verifier with an `outcome`.
      p: distribution of the target, at least `A` tokens long.
      drafts: drafts with their probabilities.
      params: parameters of the verifier.

    Raises:
      ConfigError: the verifier has no `outcome`, or `p` is shorter than `A`
        tokens.
    """
    if not hasattr(verifier, "outcome"):
        raise ConfigError(
            f"{type(verifier).__name__} has no `outcome` to enumerate: it is no "
            "OutcomeVerifier; assert_lossless samples from its `verify` instead"
        )
    log_p, prefixes, depths = _target_at_nodes(p, drafts)
    outcome = _outcome(verifier, jnp.asarray(log_p), drafts.draft, drafts.tree, params)
    stop = np.asarray(outcome.stop, np.float64)
    final = np.asarray(outcome.final, np.float64)
    emitted = _zero_outputs(p, drafts, len(depths))
    index = np.arange(len(depths))
    for n in range(depths.shape[1]):
        weight = stop[:, n, None] * final[:, n]
        for d in np.unique(depths[:, n]):
            ending = (depths[:, n] == d) & (stop[:, n] > 0)
            if ending.any():
                entry = (index[ending], *prefixes[ending, n, :d].T)
                np.add.at(emitted[d], entry, weight[ending])
    return _continue_outputs(emitted, p).reshape(len(depths), -1)


def scores_at_nodes(p: Conditionals, drafts: Drafts) -> np.ndarray:
    """Log-probabilities of the target after each node of each draft, [B, N, V].

    Raises:
      ConfigError: `p` is shorter than `A` tokens.
    """
    return _target_at_nodes(p, drafts)[0]


def _target_at_nodes(p: Conditionals, drafts: Drafts):
    """Target log-probabilities, path tokens and depth of each node of each draft."""
    draft, tree = drafts.draft, drafts.tree
    if len(p.tables) <= tree.depth:
        raise ConfigError(
            f"the target is {len(p.tables)} tokens long; a tree of depth {tree.depth} "
            f"needs {tree.depth + 1}"
        )
    draft, topology = draft.checked(tree, p.vocab_size)
    tokens = np.asarray(draft.tokens)
    batch, size = tokens.shape
    depths = np.broadcast_to(np.asarray(topology.depths), (batch, size))
    ancestors = np.broadcast_to(np.asarray(topology.ancestors), (batch, size, size))
    depth = tree.depth
    probability = np.zeros((batch, size, p.vocab_size))
    prefixes = np.zeros((batch, size, depth), np.int64)  # tokens from root to node
    for n in range(size):
        order = np.argsort(~ancestors[:, n], axis=1, kind="stable")[:, 1 : depth + 1]
        order = np.pad(order, ((0, 0), (0, depth - order.shape[1])))
        prefixes[:, n] = np.take_along_axis(tokens, order, axis=1)
        for d in np.unique(depths[:, n]):
            at_depth = depths[:, n] == d
            probability[at_depth, n] = p.after(prefixes[at_depth, n, :d])
    with np.errstate(divide="ignore"):
        return np.log(probability), prefixes, depths


def _zero_outputs(p: Conditionals, drafts: Drafts, batch: int) -> list[np.ndarray]:
    """Zeros for the probabilities of emitted sequences, by length.

    Entry `d` is `[batch] + [V] * (d + 1)`, for rounds that emit `d + 1` tokens.
    """
    lengths = range(1, drafts.tree.depth + 2)
    return [np.zeros((batch, *(p.vocab_size,) * length)) for length in lengths]


def _continue_outputs(emitted: list[np.ndarray], p: Conditionals) -> np.ndarray:
    """Probabilities of sequences of the largest length, continued by the target."""
    total = emitted[0]
    for d in range(1, len(emitted)):
        total = total[..., None] * p.tables[d] + emitted[d]
    return total


def sampled_output_distribution(
    verifier: Any,
    p: Conditionals,
    drafts: Drafts,
    params: Any = None,
    *,
    draws: int = 20_000,
    seed: int = 0,
) -> np.ndarray:
    """Empirical distribution of the next `A` tokens, from calls of `verify`.

    Args:
      verifier: object with `verify`.
      p: distribution of the target, at least `A` tokens long.
      drafts: drafts with their probabilities, by which they are sampled.
      params: parameters of the verifier.
      draws: number of rounds.
      seed: seed of drafts and noise.

    Returns:
      Frequencies `[V] * A`, float64.

    Raises:
      ConfigError: `p` is shorter than `A` tokens.
    """
    log_p = _target_at_nodes(p, drafts)[0].astype(np.float32)
    tree, chance = drafts.tree, drafts.chance / drafts.chance.sum()
    chosen = np.random.default_rng(seed).choice(len(chance), draws, p=chance)
    draft = jax.tree.map(lambda x: jnp.asarray(x)[chosen], drafts.draft)

    @jax.jit
    def verify(keys, log_p, draft, params):
        positions = jnp.tile(jnp.arange(tree.depth + 1), (draws, 1))
        noise = draw_noise(keys, positions, tree.size, p.vocab_size)
        return verifier.verify(log_p, draft, tree, noise, params).emitted(draft)

    output = verify(batch_keys(seed, draws), jnp.asarray(log_p[chosen]), draft, params)
    tokens, counts = map(np.asarray, output)
    emitted = _zero_outputs(p, drafts, 1)
    for length in range(1, tree.depth + 2):
        sequences = tokens[counts == length, :length]
        entry = (np.zeros(len(sequences), int), *sequences.T)
        np.add.at(emitted[length - 1], entry, 1 / draws)
    return _continue_outputs(emitted, p)[0]


@partial(jax.jit, static_argnames=("verifier", "tree"))
def _outcome(verifier, log_p, draft, tree, params):
    return verifier.outcome(log_p, draft, tree, params=params)


def output_distribution(
    verifier: Any, p: Conditionals, drafts: Drafts, params: Any = None
) -> np.ndarray:
    """Distribution of the next `A` tokens under a verifier.

    Args:
      verifier: verifier with an `outcome`.
      p: distribution of the target, at least `A` tokens long.
      drafts: enumerated drafts with their probabilities, or samples.
      params: parameters of the verifier.

    Returns:
      Probabilities `[V] * A`, float64.

    Raises:
      ConfigError: the verifier has no `outcome`, or `p` is shorter than `A`
        tokens.
    """
    size, length = p.vocab_size, drafts.tree.depth + 1
    with use_x64(True):
        drafts = _as_float64(drafts)
        per_draft = output_distribution_per_draft(verifier, p, drafts, params)
    per_draft = np.where(drafts.chance[:, None] > 0, per_draft, 0.0)
    return (drafts.chance @ per_draft).reshape((size,) * length)


def _as_float64(drafts: Drafts) -> Drafts:
    log_q = drafts.draft.log_q
    if log_q is None:
        return drafts
    log_q = jnp.asarray(np.asarray(log_q, np.float64))
    return replace(drafts, draft=replace(drafts.draft, log_q=log_q))


def distortion(
    verifier: Any, p: Conditionals, drafts: Drafts, params: Any = None
) -> float:
    """Total variation distance between the output of a verifier and the target.

    Both are distributions of the next `A` tokens; for the arguments see
    `output_distribution`.
    """
    length = drafts.tree.depth + 1
    expected = Conditionals(p.tables[:length]).joint()
    return float(
        np.abs(output_distribution(verifier, p, drafts, params) - expected).sum() / 2
    )


def assert_lossless(
    verifier: Any,
    p: Conditionals,
    drafts: Drafts,
    params: Any = None,
    *,
    draws: int = 20_000,
) -> None:
    """Asserts that `outcome` and `verify` have the output distribution of the target.

    With enumerated drafts, probabilities computed from `outcome` may be wrong by 1e-6.
    With sampled drafts, and for `verify`, they may be wrong by six standard errors. A
    verifier without `outcome` is checked by `verify` only.

    Args:
      verifier: object with `verify`, and with `outcome` if it is to be checked.
      p: distribution of the target, at least `A` tokens long.
      drafts: enumerated drafts with their probabilities, or samples.
      params: parameters of the verifier.
      draws: number of calls of `verify`; with 0 only `outcome` is checked.

    Raises:
      AssertionError: the distributions differ; the message names the worst tokens.
      ConfigError: the verifier has no `outcome` and `draws` is 0, or `p` is
        shorter than `A` tokens.
    """
    length = drafts.tree.depth + 1
    expected = Conditionals(p.tables[:length]).joint()
    if hasattr(verifier, "outcome") or not draws:
        if drafts.exact:
            total = drafts.chance.sum()
            if not abs(total - 1) < TOLERANCE:
                raise AssertionError(f"the drafts' chances sum to {total}")
            actual = output_distribution(verifier, p, drafts, params)
            limit = np.full_like(expected, TOLERANCE)
        else:
            with use_x64(True):
                samples = output_distribution_per_draft(
                    verifier, p, _as_float64(drafts), params
                )
            actual = samples.mean(0).reshape(expected.shape)
            error = samples.std(0).reshape(expected.shape) / np.sqrt(len(samples))
            limit = 6 * error + TOLERANCE
        _assert_close(verifier, "outcome", actual, expected, limit)
    if draws:
        actual = sampled_output_distribution(verifier, p, drafts, params, draws=draws)
        error = np.sqrt(expected * (1 - expected) / draws)
        limit = 6 * error + np.where(expected > 0, 6 / draws, TOLERANCE)
        _assert_close(verifier, "verify", actual, expected, limit)


def _assert_close(verifier: Any, method: str, actual, expected, limit) -> None:
    error = np.abs(actual - expected)
    worst = np.unravel_index(np.argmax(error - limit), error.shape)
    if not (error <= limit).all():  # also checked under `python -O`
        raise AssertionError(
            f"{type(verifier).__name__}.{method} is biased: tokens "
            f"{tuple(map(int, worst))} have probability {actual[worst]:.6f} instead of "
            f"{expected[worst]:.6f}; total variation {error.sum() / 2:.2e}"
        )
